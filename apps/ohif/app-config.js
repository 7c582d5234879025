/* IBIS Label's part of OHIF's configuration: what OHIF loads when it starts. */
window.config.extensions.push("/ohif/ibis/extension.js");
window.config.modes.push("/ohif/ibis/mode.js");
