"""Actions of a user in napari, done by a program: `test_napari` starts it on a virtual screen.

Arguments: a folder with ``thick.ome.zarr``, and the folder of a model.
"""

import sys
import time
from pathlib import Path

import napari
import numpy as np
import tifffile
from npe2 import PluginManager, PluginManifest
from qtpy.QtWidgets import QApplication

FOLDER, MODEL = Path(sys.argv[1]), Path(sys.argv[2])
MANIFEST = Path(__file__).parents[2] / "emdiffuse/napari/napari.yaml"


def wait(until, seconds=300):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "napari did not come to that"
        QApplication.processEvents()
        time.sleep(0.01)


plugins = PluginManager.instance()
plugins.discover()
if "emdiffuse" not in plugins:  # a checkout that was installed before the plugin was written
    plugins.register(PluginManifest.from_file(MANIFEST))
viewer = napari.Viewer(show=False)
dock, widget = viewer.window.add_plugin_dock_widget("emdiffuse", "Restore")
viewer.window._qt_window.resize(1300, 850)
viewer.window._qt_window.show()
assert "Open an image" in widget.told.text() and not widget.start.isEnabled()

# our reader opens the volume, lazily and with its voxel size
(layer,) = viewer.open(str(FOLDER / "thick.ome.zarr"), plugin="emdiffuse")
assert layer.multiscale and tuple(layer.scale) == (60, 10, 10)
assert widget.layers.currentText() == layer.name and widget.factor.value() == 6

# a folder without a model gives one sentence; one with a model is chosen
widget.add_model(FOLDER)
assert "model.json" in widget.state.text()
widget.add_model(MODEL)
assert "isotropic volumes" in widget.models.currentText()
widget.steps.setValue(2)
widget.samples.setValue(2)
wait(lambda: "network evaluations" in widget.told.text())
for words in (
    "Gaps of 6 pixels between 5 slices",
    "25 x 100 x 84 voxels",
    "2 samples of 2 network evaluations",
):
    assert words in widget.told.text(), widget.told.text()

# it runs in a thread, and reports progress
seen = []
widget.bar.valueChanged.connect(seen.append)
widget.restore()
assert widget.running and not widget.start.isEnabled() and widget.cancel.isEnabled()
wait(lambda: not widget.running)
assert widget.state.text() == "Done.", widget.state.text()
assert seen and max(seen) == widget.bar.maximum()
restored, uncertainty = viewer.layers[f"{layer.name} restored"], viewer.layers[f"{layer.name} uncertainty"]
assert tuple(restored.scale) == (10, 10, 10) and restored.visible and not uncertainty.visible
assert f"{restored.units[0]}" == "nanometer" and restored.metadata["emdiffuse"]["stage"] == "restored"
tifffile.imwrite(FOLDER / "restored.tif", restored.data)
tifffile.imwrite(FOLDER / "uncertainty.tif", uncertainty.data)

viewer.dims.order = (1, 0, 2)
viewer.dims.set_point(1, 500)
viewer.reset_view()
QApplication.processEvents()
tifffile.imwrite(FOLDER / "screenshot.tif", viewer.screenshot(canvas_only=False, flash=False))

# a second restoration is cancelled between two parts, and leaves no layer
layers = len(viewer.layers)
widget.layers.setCurrentText(layer.name)
widget.samples.setValue(16)
widget.restore()
wait(lambda: "parts" in widget.state.text() or not widget.running)
assert widget.running, widget.state.text()
widget.stop()
wait(lambda: not widget.running)
assert widget.state.text() == "Cancelled." and len(viewer.layers) == layers

# a stack without a unit counts pixels; slices one pixel apart have no gaps
viewer.add_image(np.zeros((4, 64, 64), np.uint8), name="plain")
widget.layers.setCurrentText("plain")
wait(lambda: "slice spacing is 1 pixels" in widget.told.text(), 30)
assert not widget.start.isEnabled()
widget.factor.setValue(3)
assert widget.start.isEnabled()
viewer.add_image(np.zeros((4, 64, 64), bool), name="mask")
widget.layers.setCurrentText("mask")
widget.factor.setValue(4)
assert "pixels of type bool" in widget.told.text()
viewer.close()
