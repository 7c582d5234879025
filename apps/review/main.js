/** The review page: watch the agent, correct it, accept or reject what it has made. */

import { setUpForm } from "./form.js";
import { setUpGradings } from "./gradings.js";
import { setUpHead } from "./head.js";
import { setUpKeys } from "./keys.js";
import { setUpLibrary } from "./library.js";
import { readLink, setUpLink } from "./link.js";
import { setUpPlayback } from "./playback.js";
import { setUpPointer } from "./pointer.js";
import { setUpSettings } from "./settings.js";
import { drawAll } from "./state.js";
import { setUpStrip } from "./strip.js";
import { setUpTools } from "./tools.js";
import { setUpTurns } from "./turns.js";
import { setUpViewport } from "./viewport.js";
import { setUpWorst } from "./worst.js";

setUpSettings();
setUpViewport();
setUpTools();
setUpPointer();
setUpStrip();
setUpHead();
setUpTurns();
setUpWorst();
setUpGradings();
setUpForm();
setUpPlayback();
setUpKeys();
setUpLink();
setUpLibrary();
drawAll();
readLink();
