"use strict";
// Where a picture is enlarged its pixels stay sharp; where it is reduced the browser averages.
function sharpen() {
  for (const image of document.querySelectorAll(".frame img, .stage img")) {
    image.classList.toggle("enlarged", image.clientWidth * devicePixelRatio >= image.naturalWidth);
  }
}

for (const viewer of document.querySelectorAll(".viewer")) {
  const { names, start, images, texts } = JSON.parse(viewer.querySelector("script").textContent);
  const [stage, slice, cut, choice] = [".stage", ".slice", ".cut", "select"].map((s) => viewer.querySelector(s));
  const [over, under] = [".over", ".under"].map((s) => viewer.querySelector(s));

  function show() {
    const index = Number(slice.value);
    const label = choice.selectedOptions[0].textContent;
    const text = texts[index];
    over.src = images[choice.value][index];
    under.src = images.restored[index];
    over.alt = `${label}, xy plane, ${text}, shown left of the boundary`;
    under.alt = `Restored, xy plane, ${text}, shown right of the boundary`;
    viewer.querySelector(".left").textContent = label;
    viewer.querySelector("output").textContent = text;
    slice.setAttribute("aria-valuetext", text);
  }

  function divide() {
    stage.style.setProperty("--cut", `${cut.value}%`);
    cut.setAttribute("aria-valuetext", `${cut.value} % of the width shows the left picture`);
  }

  slice.max = images[names[0]].length - 1;
  slice.value = start;
  slice.addEventListener("input", show);
  choice.addEventListener("change", show);
  cut.addEventListener("input", divide);
  under.addEventListener("load", sharpen);
  show();
  divide();
}

addEventListener("resize", sharpen);
addEventListener("load", sharpen);
