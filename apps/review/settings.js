/** What this browser remembers: the user's name, the theme, whether characters are keys; and until the tab closes the token. */

import { element, write } from "./dom.js";
import { set, state } from "./state.js";

const THEMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

export const identity = {
  get user() { return localStorage.getItem("ibis-user") ?? ""; },
  get token() { return sessionStorage.getItem("ibis-token") ?? ""; },
};

/** Whether keys that write a character do something (WCAG 2.1.4). */
export const characterKeys = {
  get on() { return localStorage.getItem("ibis-character-keys") !== "off"; },
  set on(is) { localStorage.setItem("ibis-character-keys", is ? "on" : "off"); },
};

function showTheme() {
  const theme = localStorage.getItem("ibis-theme") ?? "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  write(element("theme"), THEMES[theme]);
}

function showIdentity() {
  write(element("identity"), identity.user ? `You: ${identity.user}` : "You: anonymous");
}

/** Ask for name and token. */
export function askIdentity() {
  const dialog = element("who");
  element("who-name").value = identity.user;
  element("who-token").value = identity.token;
  if (!dialog.open) dialog.showModal();
}

export function setUpSettings() {
  showTheme();
  showIdentity();
  element("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES), before = localStorage.getItem("ibis-theme") ?? "auto";
    localStorage.setItem("ibis-theme", names[(names.indexOf(before) + 1) % names.length]);
    showTheme();
  });
  element("identity").addEventListener("click", askIdentity);
  element("who-cancel").addEventListener("click", () => element("who").close());
  element("who").querySelector("form").addEventListener("submit", () => {
    localStorage.setItem("ibis-user", element("who-name").value.trim());
    sessionStorage.setItem("ibis-token", element("who-token").value.trim());
    showIdentity();
    set({ identity: state.identity + 1 });
  });
}
