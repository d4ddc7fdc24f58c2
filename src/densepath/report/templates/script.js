"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const data = (figure) => JSON.parse(figure.querySelector("script").textContent);
  const options = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
  const keep = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* private windows have none */ } };
  const kept = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };

  function layoutOf(own) {
    const axis = {gridcolor: color("line"), linecolor: color("line"), zeroline: false, automargin: true, exponentformat: "power"};
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", modebar: {bgcolor: "rgba(0,0,0,0)", color: color("faint"), activecolor: color("ink")},
      font: {color: color("ink"), size: 12, family: "system-ui, sans-serif"},
      colorway: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => color(`c${i}`)), margin: {l: 44, r: 10, t: 30, b: 36}, hovermode: "closest",
      hoverlabel: {bgcolor: color("bg"), bordercolor: color("line"), font: {color: color("ink")}},
      legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0}, ...own,
      xaxis: {...axis, ...own.xaxis}, yaxis: {...axis, ...own.yaxis},
      shapes: (own.shapes || []).map((shape) => ({...shape, line: {color: color("faint"), width: 1, dash: "dash"}})),
    };
  }

  function colored(trace) {
    if (trace.type === "heatmap") return {...trace, colorscale: [[0, color("bg")], [1, color("c0")]]};
    if (!trace.meta || trace.meta.color === undefined) return trace;
    const own = trace.meta.color < 0 ? color("faint") : color(`c${trace.meta.color % 8}`);
    return {...trace, line: {...trace.line, color: own}, marker: {...trace.marker, color: own}};
  }

  function drawChart(figure) {
    const {data: traces, layout} = data(figure);
    return Plotly.react(figure.querySelector(".plot"), traces.map(colored), layoutOf(layout), options);
  }

  function drawEmbedding(figure) {
    const {points, names, thumbnails} = data(figure);
    const trace = {type: "scatter", mode: "markers", x: points.map((point) => point[0]), y: points.map((point) => point[1]),
      hoverinfo: "none", marker: {size: 9, opacity: 0.8}, meta: {color: 0}};
    const hidden = {showticklabels: false, ticks: "", title: ""};
    const plot = figure.querySelector(".plot");
    const drawn = Plotly.react(plot, [colored(trace)], layoutOf({xaxis: hidden, yaxis: hidden, showlegend: false}), options);
    if (plot.dataset.listens) return drawn;
    plot.dataset.listens = "1";
    const tip = document.getElementById("tip");
    plot.on("plotly_hover", ({points: [point], event}) => {
      const i = point.pointIndex;
      tip.querySelector("img").src = thumbnails[i];
      tip.querySelector("p").textContent = names[i];
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 190)}px`;
      tip.style.top = `${Math.max(Math.min(event.clientY + 14, innerHeight - 200), 4)}px`;
    });
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    return drawn;
  }

  const charts = all("figure.chart");
  // A chart is one picture to the keyboard: its buttons, which only a mouse shows, are not stops of their own.
  const skipButtons = (figure) => all(".modebar-btn", figure).forEach((button) => { button.tabIndex = -1; });
  function draw(figure) {
    const first = !figure.dataset.drawn;
    figure.dataset.drawn = "1";
    return (figure.classList.contains("embedding") ? drawEmbedding : drawChart)(figure).then((plot) => {
      skipButtons(figure);
      if (first) plot.on("plotly_afterplot", () => skipButtons(figure));
    });
  }
  const redraw = () => charts.filter((figure) => figure.dataset.drawn).forEach(draw);
  const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    seen.unobserve(entry.target);
    draw(entry.target);
  }), {rootMargin: "500px"});
  charts.forEach((figure) => seen.observe(figure));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { all("details").forEach((part) => { part.open = true; }); charts.filter((figure) => !figure.dataset.drawn).forEach(draw); });

  all("figure.slider").forEach((figure) => {
    const input = figure.querySelector("input");
    const frames = all(".frames img", figure);
    const captions = JSON.parse(input.dataset.captions);
    const show = () => {
      frames.forEach((frame, i) => { frame.hidden = i !== Number(input.value); });
      figure.querySelector("output").textContent = captions[input.value];
      input.setAttribute("aria-valuetext", captions[input.value]);
    };
    input.addEventListener("input", show);
    show();
  });

  all("figure.layers").forEach((figure) => {
    const images = all(".stack img", figure);
    all("input", figure).forEach((input) => {
      const show = () => { images[input.dataset.layer].style.opacity = input.value / 100; };
      input.addEventListener("input", show);
      show();
    });
  });

  all("figure.detections").forEach((figure) => {
    const input = figure.querySelector("input");
    const show = () => {
      const least = Number(input.value);
      const total = {correct: 0, false: 0, missed: 0};
      all(".outlined", figure).forEach((image) => {
        const own = {correct: 0, false: 0, missed: 0};
        all("path", image).forEach((path) => {
          const kind = path.classList.contains("true") ? "missed" : path.classList.contains("correct") ? "correct" : "false";
          const shown = (Number(path.dataset.score) >= least) !== (kind === "missed");
          path.style.display = shown ? "" : "none";
          own[kind] += shown;
        });
        image.querySelector("output").textContent = `${own.correct} correct, ${own.false} false, ${own.missed} missed`;
        Object.keys(own).forEach((kind) => { total[kind] += own[kind]; });
      });
      figure.querySelector("output").textContent = `${least.toFixed(2)}: ${total.correct} correct, ${total.false} false, ${total.missed} missed`;
    };
    input.addEventListener("input", show);
    show();
  });

  all("tr.sort th").forEach((head) => head.querySelector("button").addEventListener("click", () => {
    const heads = [...head.parentElement.children];
    const column = heads.indexOf(head);
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.children[column].textContent.replace(/,(?=\d{3})/g, "");
    const compare = (a, b) => {
      const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
      if (isNaN(x) || isNaN(y)) return isNaN(x) && isNaN(y) ? sign * value(a).localeCompare(value(b)) : isNaN(x) - isNaN(y);
      return sign * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
  }));

  all("button.copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
    }
  }));

  const reload = Number(document.body.dataset.reload);
  if (reload) {
    const inputs = all("input[type=range]");
    const folds = all("details");
    inputs.forEach((input, i) => {
      const value = kept(`range ${i} ${input.max}`);
      if (value !== null) { input.value = value; input.dispatchEvent(new Event("input")); }
      input.addEventListener("change", () => keep(`range ${i} ${input.max}`, input.value));
    });
    folds.forEach((fold, i) => {
      if (kept(`fold ${i}`)) fold.open = true;
      fold.addEventListener("toggle", () => keep(`fold ${i}`, fold.open ? "1" : ""));
    });
    scrollTo({top: Number(kept("top")), behavior: "instant"});
    addEventListener("pagehide", () => keep("top", scrollY));
    let touched = 0;
    ["pointermove", "keydown", "wheel"].forEach((name) => addEventListener(name, () => { touched = Date.now(); }, {passive: true}));
    setInterval(() => { if (!document.hidden && Date.now() - touched > 1000 * reload) location.reload(); }, 1000 * reload);
  }
})();
