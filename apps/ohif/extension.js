/** The OHIF extension with the agent's panel. OHIF imports it by its address in `app-config.js`. */

import { Panel } from "./panel.js";
import { Study } from "./study.js";

const EXTENSION = "ibis-label";
export const AGENT = `${EXTENSION}.panelModule.agent`;

const props = { className: "ibis-host" };

/** A div as a React element, as compilers inline them (Babel's transform-react-inline-elements); `ref` is given the node. */
const host = ref => ({ $$typeof: Symbol.for("react.element"), type: "div", key: null, ref, props, _owner: null });

let panel = null;

export default {
  id: EXTENSION,
  preRegistration() {
    // Where MONAI Label's panel looks for its server: cookies know no port, so another server's address may be in it.
    document.cookie = `MONAILABEL_SERVER_URL=${encodeURIComponent(location.origin)};path=/;SameSite=Lax`;
  },
  onModeExit() {
    panel = null;
  },
  getPanelModule({ servicesManager, commandsManager }) {
    const mount = node => {
      if (!node) return;
      panel ??= new Panel(new Study(servicesManager.services, commandsManager));
      node.append(panel.root);
    };
    return [
      { name: "agent", iconName: "tab-segmentation", iconLabel: "Agent", label: "IBIS agent", component: () => host(mount) },
    ];
  },
};
