/** The mode "MONAI Label", with the agent's panel above MONAI Label's own and the table of segments and its tools below. */

import { AGENT } from "./extension.js";
import { addTools } from "./tools.js";

const STOCK = "@ohif/mode-monai-label";
const SEGMENTS = "@ohif/extension-cornerstone.panelModule.panelSegmentationWithTools";

/** OHIF takes the first mode of an id; this one comes before the stock one, whose id it has and of which it is made. */
export default {
  id: STOCK,
  async modeFactory(given) {
    const [stock] = await given.loadModules([STOCK]);
    const mode = await stock.modeFactory(given);
    return {
      ...mode,
      onModeEnter(entered) {
        mode.onModeEnter(entered);
        addTools(entered.servicesManager.services.toolbarService);
      },
      routes: mode.routes.map(route => ({
        ...route,
        layoutTemplate(asked) {
          const layout = route.layoutTemplate(asked);
          const panels = [[AGENT, ...layout.props.rightPanels, SEGMENTS]];
          return { ...layout, props: { ...layout.props, rightPanels: panels } };
        },
      })),
    };
  },
};
