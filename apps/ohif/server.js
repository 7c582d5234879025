/** Requests to the label server, which also serves OHIF. What goes wrong is an Error with a sentence. */

export const identity = {
  get user() { return localStorage.getItem("ibis-user") ?? ""; },
  set user(name) { localStorage.setItem("ibis-user", name); },
};

function address(path) {
  const url = new URL(path, location.origin);
  if (identity.user) url.searchParams.set("client_id", identity.user);
  return url;
}

async function ask(method, path, body) {
  const json = body !== undefined && !(body instanceof FormData);
  let answer;
  try {
    answer = await fetch(address(path), {
      method,
      body: json ? JSON.stringify(body) : body,
      headers: json ? { "Content-Type": "application/json" } : {},
    });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  let reason;
  try {
    reason = (await answer.json()).detail;
  } catch {
    reason = "";
  }
  if (Array.isArray(reason)) reason = reason.map(one => `${one.loc?.at(-1) ?? "request"}: ${one.msg}`).join("; ");
  throw new Error(reason || `The server answered ${answer.status} ${answer.statusText}.`);
}

export const info = async () => (await ask("GET", "/info/")).json();
export const run = async (image, prompt, slices) => (await (await ask("POST", "/ibis/runs", { image, prompt, slices })).json()).id;
export const shown = async key => (await ask("GET", `/ibis/runs/${key}`)).json();
export const mask = async key => (await ask("GET", `/ibis/runs/${key}/mask`)).arrayBuffer();
export const cancel = key => ask("DELETE", `/ibis/runs/${key}`);

/** Store a label file of an image for good; says where it is. `names` is the `label_info` of the stock route. */
export async function submit(image, file, names) {
  const form = new FormData();
  form.append("params", JSON.stringify({ label_info: names, client_id: identity.user || undefined }));
  form.append("label", file, `${image}.nrrd`);
  return (await ask("PUT", `/datastore/label?image=${encodeURIComponent(image)}`, form)).json();
}

/** Call `happened` with every event of a run; resolves when the run has ended. */
export function follow(key, happened) {
  return new Promise((ended, failed) => {
    const source = new EventSource(address(`/ibis/runs/${key}/events`));
    const kinds = ["started", "slice_started", "step", "slice_settled"];
    for (const kind of kinds) source.addEventListener(kind, event => happened(JSON.parse(event.data)));
    for (const kind of ["done", "failed", "cancelled", "interrupted"]) {
      source.addEventListener(kind, () => {
        source.close();
        ended();
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) failed(new Error("The server does not say any more how the run goes on."));
    });
  });
}
