"""The widget: choose a layer and a model, see what will happen, restore, follow progress, cancel.

Conventions
-----------
* The work runs in a napari worker thread; Qt is used only in the main thread.
* A layer's scale is its voxel size. If its unit is not a length (napari's "pixel"), pixels count as 1 nm,
  which changes no voxel, and the slice spacing is set in the widget.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
from napari.layers import Image, Layer
from napari.qt.threading import GeneratorWorker, create_worker
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from emdiffuse.config import MAXIMUM_FACTOR, Sampler
from emdiffuse.config.shipped import SHIPPED, model_folder
from emdiffuse.config.tasks import TASKS
from emdiffuse.models.description import read_description
from emdiffuse.napari.work import Job, Result, run
from emdiffuse.project.speed import Speed
from emdiffuse.runtime.errors import EmdiffuseError
from emdiffuse.runtime.units import NANOMETERS

OTHER = "Another model …"
WIDTH = 420
"""Maximum width of the widget in screen pixels, since model names are long."""


class RestoreWidget(QWidget):
    """Widget that restores an image layer.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Viewer of the widget; napari requires this parameter name.
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self.viewer = viewer = napari_viewer
        self._speeds: dict[tuple[str, int], Speed] = {}
        self._worker: GeneratorWorker[Any, Any, Any] | None = None
        self._timer: GeneratorWorker[Any, Any, Any] | None = None
        self.layers, self.models = QComboBox(), QComboBox()
        self.factor, self.steps, self.samples = QDoubleSpinBox(), QSpinBox(), QSpinBox()
        self.told, self.state = QLabel(), QLabel()
        self.bar, self.start, self.cancel = QProgressBar(), QPushButton("Restore"), QPushButton("Cancel")
        self._arrange()
        viewer.layers.events.inserted.connect(self._list_layers)
        viewer.layers.events.removed.connect(self._list_layers)
        viewer.layers.selection.events.active.connect(self._follow_selection)
        self._list_models()
        self._list_layers()

    def _arrange(self) -> None:
        """Arrange and connect the controls."""
        self.factor.setRange(1, MAXIMUM_FACTOR)
        self.factor.setToolTip("Distance between slices, in pixels")
        self.steps.setRange(1, 1000)
        self.steps.setToolTip("Network evaluations per sample; 1 gives the mean in one evaluation")
        self.samples.setRange(1, 64)
        self.samples.setToolTip("Number of samples; their mean is shown, and their spread is the uncertainty")
        self.told.setWordWrap(True)
        self.state.setWordWrap(True)
        self.cancel.setEnabled(False)
        self.setMaximumWidth(WIDTH)
        self.models.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        form = QFormLayout()
        rows = {
            "Layer": self.layers,
            "Model": self.models,
            "Slice spacing (pixels)": self.factor,
            "Steps": self.steps,
            "Samples": self.samples,
        }
        for name, control in rows.items():
            form.addRow(name, control)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        for control in (self.told, self.start, self.cancel, self.bar, self.state):
            layout.addWidget(control)
        layout.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.layers.currentIndexChanged.connect(self._take_layer)
        self.models.activated.connect(self._choose_other)
        self.models.currentIndexChanged.connect(self._take_model)
        for control in (self.factor, self.steps, self.samples):
            control.valueChanged.connect(self.tell)
        self.start.clicked.connect(self.restore)
        self.cancel.clicked.connect(self.stop)

    def _list_models(self) -> None:
        """List the shipped models, and an entry to choose another."""
        for name, task in SHIPPED.items():
            self.models.addItem(f"{name}: {TASKS[task].title}", str(model_folder(name)))
        self.models.addItem(OTHER, "")

    def add_model(self, folder: Path) -> None:
        """Add a model folder to the list and choose it, or show why it is not a model."""
        try:
            description = read_description(folder)
        except EmdiffuseError as error:
            self.state.setText(str(error))
            self.models.setCurrentIndex(0)
            return
        name = description.name or folder.parent.name
        self.models.insertItem(0, f"{name}: {TASKS[description.task].title}", str(folder))
        self.models.setCurrentIndex(0)

    def _choose_other(self, index: int) -> None:
        if self.models.itemData(index) == "":
            folder = QFileDialog.getExistingDirectory(self, "Folder of a model (with model.json)")
            if folder:
                self.add_model(Path(folder))

    def _list_layers(self, event: Any = None) -> None:
        """List the image layers, and keep the choice if it still exists."""
        chosen = self.layers.currentText()
        names = [layer.name for layer in self.viewer.layers if isinstance(layer, Image) and not layer.rgb]
        self.layers.blockSignals(True)
        self.layers.clear()
        self.layers.addItems(names)
        if chosen in names:
            self.layers.setCurrentText(chosen)
        self.layers.blockSignals(False)
        if self.layers.currentText() != chosen:
            self._take_layer()
        self.tell()

    def _follow_selection(self, event: Any = None) -> None:
        active = self.viewer.layers.selection.active
        if active is not None and self.layers.findText(active.name) >= 0 and not self.running:
            self.layers.setCurrentText(active.name)

    @property
    def layer(self) -> Image | None:
        """The layer to restore."""
        chosen = (one for one in self.viewer.layers if one.name == self.layers.currentText())
        return next(chosen, None)

    @property
    def running(self) -> bool:
        """Whether a restoration is running."""
        return self._worker is not None

    def _take_layer(self, index: int = 0) -> None:
        """Set the slice spacing from the layer's scale."""
        if self.layer is not None and self.layer.ndim > 2:
            z, y = (float(value) for value in self.layer.scale[-3:-1])
            self.factor.setValue(z / y)
        self.tell()

    def _take_model(self, index: int = 0) -> None:
        """Set the model's default number of steps."""
        folder = self.models.currentData()
        if folder:
            try:
                description = read_description(Path(folder))
            except EmdiffuseError as error:
                self.state.setText(str(error))
                return
            self.steps.setValue(description.sampler.steps)
            self.samples.setValue(1)
            self.factor.setEnabled(TASKS[description.task].volumetric)
        self.tell()

    def job(self) -> Job | None:
        """Return the chosen job, or None while the choice is incomplete."""
        layer, folder = self.layer, self.models.currentData()
        if layer is None or not folder:
            return None
        data = layer.data[0] if layer.multiscale else layer.data
        pixel = pixel_size(layer) or 1.0
        apart = self.factor.value() * pixel if data.ndim > 2 else pixel
        sampler = Sampler(steps=self.steps.value(), samples=self.samples.value())
        return Job(layer.name, data, (apart, pixel, pixel), Path(folder), sampler)

    def tell(self, value: Any = None) -> None:
        """Show what will happen, or why nothing can; each model is timed once."""
        job = self.job()
        if job is None:
            self.told.setText("Open an image or a volume, and choose a model.")
            self.start.setEnabled(False)
            return
        try:
            key = (str(job.model), job.cost.slices)
        except EmdiffuseError as error:
            self.told.setText(str(error))
            self.start.setEnabled(False)
            return
        self.start.setEnabled(not self.running)
        if key in self._speeds:
            self.told.setText(job.told(self._speeds[key]))
        elif self._timer is None:
            self.told.setText("Timing the network …")
            self._time(job, key)

    def _time(self, job: Job, key: tuple[str, int]) -> None:
        def timed(speed: Speed) -> None:
            self._speeds[key] = speed
            self._timer = None
            self.tell()

        self._timer = create_worker(job.speed, _connect={"returned": timed, "errored": self._failed})

    def restore(self) -> None:
        """Start restoring the layer in a thread."""
        job = self.job()
        if job is None or self.running:
            return
        self._worker = create_worker(run, job, _start_thread=False)
        self._worker.yielded.connect(self._proceed)
        self._worker.errored.connect(self._failed)
        self._worker.finished.connect(self._end)
        self.bar.setRange(0, 0)  # until the number of parts is known
        self.state.setText("Preparing …")
        self.start.setEnabled(False)
        self.cancel.setEnabled(True)
        self._worker.start()

    def stop(self) -> None:
        """Cancel: the current part is finished, and discarded with the others."""
        if self._worker is not None:
            self.state.setText("Cancelling …")
            self._worker.quit()

    def _proceed(self, step: tuple[int, int, Result | None]) -> None:
        if self._worker is None or self._worker.abort_requested:
            return  # the part that was running at Cancel
        done, parts, result = step
        self.bar.setRange(0, parts)
        self.bar.setValue(done)
        self.state.setText(f"{done} of {parts} parts restored")
        if result is not None:
            self._show(result)
            self.state.setText("Done.")

    def _failed(self, error: BaseException) -> None:
        """Show a mistake as one sentence; a bug goes to napari's notifications."""
        self._timer = None
        self.state.setText(str(error))
        if not isinstance(error, EmdiffuseError):
            notification_manager.receive_error(type(error), error, error.__traceback__)

    def _end(self) -> None:
        self._worker = None
        self.cancel.setEnabled(False)
        if self.state.text() != "Done.":
            self.bar.setRange(0, 1)
            self.bar.setValue(0)
            if self.state.text() == "Cancelling …":  # keep the message of a failure
                self.state.setText("Cancelled.")
        self.tell()

    def _show(self, result: Result) -> None:
        """Add the result as layers, with the position and units of the input layer."""
        layer = self.layer
        assert layer is not None
        known = pixel_size(layer)
        size = (
            result.size
            if known is not None
            else tuple(value * float(layer.scale[-1]) for value in result.size)
        )
        for name, image in result.images.items():
            data = image if layer.ndim > 2 else image[0]
            self.viewer.add_image(
                data,
                name=f"{layer.name} {name}",
                scale=size[-data.ndim :],
                units=("nm" if known is not None else "pixel",) * data.ndim,
                contrast_limits=layer.contrast_limits if name != "uncertainty" else None,
                colormap="magma" if name == "uncertainty" else "gray",
                visible=name == "restored",
                metadata={"emdiffuse": result.facts},
            )


def pixel_size(layer: Layer) -> float | None:
    """Return a layer's pixel size in nanometers, or None if its unit is not a length."""
    scale = NANOMETERS.get(f"{layer.units[-1]}")
    return None if scale is None else float(layer.scale[-1]) * scale
