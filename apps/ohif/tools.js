/** Brush, eraser and scissors: the stock mode has the tools, but no buttons for them. */

const NEEDED = "Run the agent, or connect MONAI Label, to have something to draw on";
const RADIUS_MM = { min: 0.5, max: 60, step: 0.5, value: 8 };

function evaluate(toolNames) {
  return { name: "evaluate.cornerstone.segmentation", toolNames, disabledText: NEEDED };
}

function brush(id, icon, circle, sphere) {
  const name = id.toLowerCase();
  return {
    id,
    icon,
    label: id,
    evaluate: evaluate([circle, sphere]),
    options: [
      {
        name: "Radius (mm)",
        id: `${name}-radius`,
        type: "range",
        ...RADIUS_MM,
        commands: { commandName: "setBrushSize", commandOptions: { toolNames: [circle, sphere] } },
      },
      {
        name: "Shape",
        id: `${name}-mode`,
        type: "radio",
        value: circle,
        values: [{ value: circle, label: "Circle" }, { value: sphere, label: "Sphere" }],
        commands: "setToolActiveToolbar",
      },
    ],
  };
}

/** Into the section that the stock mode keeps for them. */
export function addTools(toolbarService) {
  const items = [
    brush("Brush", "icon-tool-brush", "CircularBrush", "SphereBrush"),
    brush("Eraser", "icon-tool-eraser", "CircularEraser", "SphereEraser"),
  ];
  const shapes = ["CircleScissor", "SphereScissor", "RectangleScissor"];
  const options = [
    {
      name: "Shape",
      id: "shape-mode",
      type: "radio",
      value: shapes[0],
      values: shapes.map(value => ({ value, label: value.replace("Scissor", "") })),
      commands: "setToolActiveToolbar",
    },
  ];
  toolbarService.addButtons([
    { id: "BrushTools", uiType: "ohif.buttonGroup", props: { groupId: "BrushTools", items } },
    {
      id: "Shapes",
      uiType: "ohif.radioGroup",
      props: { label: "Shapes", icon: "icon-tool-shape", evaluate: evaluate(shapes), options },
    },
  ]);
}
