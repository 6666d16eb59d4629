// Draws the page's charts with ECharts from the data in #charts. Until a chart stands, and where scripts are off or the page
// is printed, the drawing that the page already holds is shown instead. Names from files only ever become text, never markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("charts").textContent);
  const SHAPES = ["circle", "rect", "diamond", "triangle", "path://M0,0L10,0L5,9Z", "path://M3,0h4v3h3v4h-3v3h-4v-3h-3v-4h3z"];
  const DASHES = ["solid", [8, 4], [2, 3], [8, 3, 2, 3], [14, 4], [5, 2, 2, 2, 2, 2]];
  const SHADED_TURNS = 400; // more at once are thinner than a pixel
  const CANVAS_FROM = 1500; // points: more are too many elements

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const lines = [0, 1, 2, 3, 4, 5].map((index) => read(`--line-${index}`));
    return { ink: read("--ink"), soft: read("--soft"), grid: read("--grid"), card: read("--card"), paper: read("--paper"), line: (i) => lines[i % 6] };
  };
  const shape = (index) => SHAPES[index % SHAPES.length];
  const dash = (index) => DASHES[index % DASHES.length];
  const titled = (axis) => (axis.unit ? `${axis.label} (${axis.unit})` : axis.label);
  const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
  const clock = (seconds, span) => {
    const pad = (number) => String(number).padStart(2, "0");
    if (span <= 180) return `${short(seconds)} s`;
    const whole = Math.round(seconds);
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    return h || span > 3600 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
  };

  // What hovering shows: a title and lines of a name and a value, with the mark that stands for it in the chart.
  const hint = (title, rows) => {
    const box = document.createElement("div");
    box.className = "hint";
    box.appendChild(document.createElement("strong")).textContent = title;
    const list = box.appendChild(document.createElement("dl"));
    for (const [name, value, colour] of rows) {
      const term = list.appendChild(document.createElement("dt"));
      term.textContent = name;
      if (colour) term.style.borderColor = colour;
      list.appendChild(document.createElement("dd")).textContent = value;
    }
    return box;
  };

  const common = (look) => ({
    animation: false,
    backgroundColor: "transparent",
    textStyle: { color: look.ink, fontFamily: "system-ui, -apple-system, 'Segoe UI', sans-serif", fontSize: 13 },
    tooltip: {
      confine: true, backgroundColor: look.paper, borderColor: look.grid, textStyle: { color: look.ink, fontSize: 13 },
      extraCssText: "max-width: 22rem; white-space: normal;",
    },
    // Without a picture of its own: it lets a mouse draw the rectangle to zoom into.
    toolbox: { itemSize: 0, showTitle: false, feature: { dataZoom: { filterMode: "none", brushStyle: { color: look.soft, opacity: 0.25 } } } },
  });
  const legend = (look, more) => ({
    type: "scroll", top: 0, left: 0, itemGap: 13, itemWidth: 14, itemHeight: 11, textStyle: { color: look.ink }, inactiveColor: look.soft,
    pageTextStyle: { color: look.ink }, pageIconColor: look.ink, pageIconInactiveColor: look.grid, ...more,
  });
  const axis = (look, name, more) => ({
    type: "value", scale: true, name, nameTextStyle: { color: look.soft },
    axisLine: { show: true, lineStyle: { color: look.grid } }, axisTick: { show: false },
    axisLabel: { color: look.ink, hideOverlap: true }, splitLine: { lineStyle: { color: look.grid } }, ...more,
  });
  const across = { nameLocation: "middle", nameGap: 28 };
  // What an upright axis shows, level above it: turned text is hard to read.
  const heading = (look, axis, top) => ({ text: titled(axis), left: 0, top, padding: 0, textStyle: { color: look.soft, fontSize: 12, fontWeight: "normal" } });
  const zoom = (more) => ({
    type: "inside", filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false,
    preventDefaultMouseMove: false, ...more,
  });

  // Where each point's name goes so that no two cover each other or a point: the first of some places around it that is free.
  function labelPlaces(chart, window, width, height) {
    const at = (point) => [
      ((point.x - window.x.min) / (window.x.max - window.x.min)) * width, ((window.y.max - point.y) / (window.y.max - window.y.min)) * height,
    ];
    const taken = chart.points.map((point) => { const [x, y] = at(point); return [x - 8, y - 8, x + 8, y + 8]; });
    const places = new Map();
    for (const point of [...chart.points].sort((a, b) => b.chosen - a.chosen)) {
      const [[x, y], across, apart] = [at(point), 7.4 * point.name.length, point.chosen ? 15 : 9];
      const around = [[apart, 13], [-across / 2, -apart - 12], [-across / 2, apart + 12], [apart, -13], [-apart - across, 13], [-apart - across, -13]];
      const free = around.find(([dx, dy]) => {
        const box = [x + dx, y + dy - 7, x + dx + across, y + dy + 7];
        if (box[0] < 0 || box[2] > width || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) return false;
        taken.push(box);
        return true;
      });
      if (free) places.set(point, { position: [free[0] + 7, free[1] + 7], verticalAlign: "middle" });
    }
    return places;
  }

  function scatter(chart, look, width) {
    const series = [];
    if (chart.front.length > 1) {
      series.push({
        type: "line", name: "Pareto front", data: chart.front, symbol: "none", silent: true, z: 1,
        lineStyle: { color: look.soft, type: "dashed", width: 1.5 }, itemStyle: { color: look.soft }, tooltip: { show: false },
      });
    }
    const names = chart.methods.length ? chart.methods : chart.points.map((point) => point.name);
    const reach = (key, range) => {
      const all = chart.points.flatMap((point) => [point[key], ...(point[range] || []).filter((end) => end !== null)]);
      const [low, high] = [Math.min(...all), Math.max(...all)];
      const pad = 0.12 * (high - low) || 0.05 * Math.abs(high) || 1;
      return { min: low - pad, max: high + pad };
    };
    const window = { x: reach("x", "xr"), y: reach("y", "yr") };
    const places = labelPlaces(chart, window, width - 70, 290);
    const bars = (key, at, size) => names.forEach((name, index) => {
      const own = chart.points.filter((point, place) => point[key] && (chart.methods.length ? point.style === index : place === index));
      if (!own.length) return;
      const colour = look.line(own[0].style);
      const spans = own.flatMap((point) => point[key].filter((end) => end !== null).map((end) => [point, end]));
      series.push({
        type: "line", name, data: spans.flatMap(([point, end]) => [[point.x, point.y], at(point, end), ["-", "-"]]), silent: true, z: 2, tooltip: { show: false },
        symbol: "rect", symbolSize: size, showSymbol: true, lineStyle: { color: colour, width: 1.6 }, itemStyle: { color: colour },
      });
    });
    bars("xr", (point, end) => [end, point.y], [2, 10]);
    bars("yr", (point, end) => [point.x, end], [10, 2]);
    names.forEach((name, index) => {
      const own = chart.points.filter((point, place) => (chart.methods.length ? point.style === index : place === index));
      series.push({
        type: "scatter", name, z: 4, symbolSize: 14,
        data: own.map((point) => ({
          value: [point.x, point.y], point, symbol: shape(point.style),
          itemStyle: { color: point.hollow ? look.card : look.line(point.style), borderColor: look.line(point.style), borderWidth: 2 },
          label: {
            show: places.has(point), formatter: () => point.name, color: look.ink, fontWeight: point.chosen ? "bold" : "normal",
            ...places.get(point), textBorderColor: look.card, textBorderWidth: 3,
          },
        })),
      });
    });
    const chosen = chart.points.filter((point) => point.chosen);
    series.push({
      type: "scatter", data: chosen.map((point) => [point.x, point.y]), symbol: "circle", symbolSize: 27, silent: true, z: 3,
      itemStyle: { color: "transparent", borderColor: look.ink, borderWidth: 2 }, tooltip: { show: false },
    });
    const named = chart.methods.map((name, index) => ({ name, icon: shape(index), itemStyle: { color: look.line(index) } }));
    if (chart.front.length > 1) named.push({ name: "Pareto front", icon: "path://M0,4h4v2h-4zM7,4h4v2h-4zM14,4h4v2h-4z" });
    const ticks = { color: look.ink, hideOverlap: true, showMinLabel: false, showMaxLabel: false, formatter: short };
    return {
      ...common(look),
      title: heading(look, chart.y, named.length > 1 ? 30 : 4),
      legend: legend(look, { data: named, left: named.length > 1 ? 0 : null, right: 0, selectedMode: chart.methods.length > 0 }),
      grid: { left: 4, right: 16, top: named.length > 1 ? 54 : 28, bottom: 34, containLabel: true },
      xAxis: axis(look, titled(chart.x), { ...across, ...window.x, axisLabel: ticks }),
      yAxis: axis(look, "", { ...window.y, axisLabel: ticks }),
      dataZoom: [zoom({ xAxisIndex: 0 }), zoom({ yAxisIndex: 0 })],
      tooltip: { ...common(look).tooltip, trigger: "item", formatter: (of) => (of.data.point ? hint(of.data.point.name, of.data.point.facts) : "") },
      series,
    };
  }

  function lines(chart, look) {
    const byHeight = !chart.stepped; // a distribution is read at a share, tokens at a block
    const series = chart.lines.map((line) => ({
      type: "line", name: line.name, data: line.data, step: chart.stepped ? "end" : false, symbol: "circle", symbolSize: 7, showSymbol: false,
      lineStyle: { color: look.line(line.style), type: dash(line.dash), width: 2.2 }, itemStyle: { color: look.line(line.style) }, emphasis: { disabled: true },
    }));
    if (chart.mark && series.length) {
      series[0].markLine = {
        silent: true, symbol: "none", data: [{ yAxis: chart.mark[0] }], lineStyle: { color: look.soft, type: "dotted" },
        label: { formatter: chart.mark[1], position: "insideStartTop", color: look.soft },
      };
    }
    const pointer = { type: "line", axis: byHeight ? "y" : "x", lineStyle: { color: look.soft }, label: { show: false } };
    return {
      ...common(look),
      title: heading(look, chart.y, 30),
      legend: legend(look, { itemWidth: 30 }),
      grid: { left: 4, right: 20, top: 54, bottom: 34, containLabel: true },
      xAxis: axis(look, titled(chart.x), {
        ...across, scale: !chart.stepped, minInterval: chart.stepped ? 1 : 0,
        axisLabel: { color: look.ink, hideOverlap: true, showMinLabel: chart.stepped, showMaxLabel: chart.stepped, formatter: short },
      }),
      yAxis: axis(look, "", { min: 0, max: byHeight ? 100 : null }),
      dataZoom: [zoom({ xAxisIndex: 0, startValue: chart.window[0], endValue: chart.window[1] }), zoom({ yAxisIndex: 0 })],
      tooltip: {
        ...common(look).tooltip, trigger: "axis", axisPointer: pointer,
        formatter: (all) => {
          const rows = all.map((of) => [of.seriesName, byHeight ? `${short(of.value[0])} ${chart.x.unit}` : short(of.value[1]), of.color]);
          const at = all.length ? all[0].value : [0, 0];
          return hint(byHeight ? `${short(at[1])} % of inferences take at most` : `after block ${short(at[0])}`, rows);
        },
      },
      series,
    };
  }

  function timeline(chart, look) {
    const lanes = [{ title: "p50 latency of each turn", unit: "ms", traces: [] }, ...chart.lanes];
    const span = chart.seconds;
    const [first, height, gap] = [60, 92, 44]; // pixels: room above the lanes, of a lane, between two
    const tops = lanes.map((_, index) => first + index * (height + gap));
    const series = lanes.map((_, index) => ({
      type: "line", id: `shade-${index}`, data: [], xAxisIndex: index, yAxisIndex: index, silent: true, tooltip: { show: false }, z: 0,
    }));
    chart.budgets.forEach((name, index) => series.push({
      type: "scatter", name, symbol: shape(index), symbolSize: 7, itemStyle: { color: look.line(index) }, xAxisIndex: 0, yAxisIndex: 0,
      data: chart.turns.filter((turn) => turn[3] === index).map((turn) => [(turn[0] + turn[1]) / 2, turn[4]]),
    }));
    const legends = [legend(look, { data: chart.budgets.map((name, index) => ({ name, icon: shape(index) })) })];
    chart.lanes.forEach((lane, at) => {
      const place = at + 1;
      const title = (trace) => `${trace.name} ${lane.title}`;
      lane.traces.forEach((trace, index) => {
        const colour = index ? look.line(index - 1) : look.ink;
        const whole = { type: "line", xAxisIndex: place, yAxisIndex: place, symbol: "none", emphasis: { disabled: true }, connectNulls: false };
        series.push({ ...whole, name: title(trace), data: trace.x.map((x, i) => [x, trace.mean[i]]), unit: lane.unit, lineStyle: { color: colour, type: dash(index), width: 1.6 }, itemStyle: { color: colour }, z: 3 });
        if (trace.low) {
          const hidden = { ...whole, stack: `${place}-${index}`, silent: true, lineStyle: { opacity: 0 }, tooltip: { show: false }, z: 2 };
          series.push({ ...hidden, id: `low-${place}-${index}`, data: trace.x.map((x, i) => [x, trace.low[i]]) });
          series.push({ ...hidden, id: `high-${place}-${index}`, data: trace.x.map((x, i) => [x, trace.high[i] === null ? null : trace.high[i] - trace.low[i]]), areaStyle: { color: colour, opacity: 0.22 } });
        }
      });
      legends.push(legend(look, {
        top: tops[place] - 27, left: 120, itemWidth: 24, itemHeight: 8,
        data: lane.traces.map(title), formatter: (name) => name.slice(0, -lane.title.length - 1),
      }));
    });
    const turnAt = (seconds) => chart.turns.find((turn) => turn[0] <= seconds && seconds <= turn[1]);
    return {
      ...common(look),
      title: lanes.map((lane, index) => heading(look, { label: lane.title, unit: lane.unit }, tops[index] - 22)),
      legend: legends,
      axisPointer: { link: [{ xAxisIndex: "all" }], label: { show: false } },
      grid: lanes.map((_, index) => ({ left: 52, right: 16, top: tops[index], height })),
      xAxis: lanes.map((_, index) => axis(look, "", {
        gridIndex: index, min: 0, max: span, splitLine: { show: false },
        axisLabel: { show: index === lanes.length - 1, color: look.ink, hideOverlap: true, showMaxLabel: false, formatter: (value) => clock(value, span) },
      })),
      yAxis: lanes.map((_, index) => axis(look, "", { gridIndex: index, splitNumber: 3, ...(lanes[index].unit === "%" ? { min: 0, max: 100 } : {}), axisLabel: { color: look.ink, hideOverlap: true, formatter: short } })),
      dataZoom: [zoom({ xAxisIndex: lanes.map((_, index) => index) })],
      toolbox: { ...common(look).toolbox, feature: { dataZoom: { ...common(look).toolbox.feature.dataZoom, yAxisIndex: "none" } } },
      tooltip: {
        ...common(look).tooltip, trigger: "axis", axisPointer: { type: "line", lineStyle: { color: look.soft } },
        formatter: (all) => {
          if (!all.length) return "";
          const at = all[0].axisValue;
          const turn = turnAt(at);
          const rows = all.filter((of) => of.seriesName && !of.seriesName.startsWith("series") && of.value[1] !== null && of.seriesType === "line")
            .map((of) => [of.seriesName, short(of.value[1]), of.color]);
          if (turn) rows.unshift(["round", String(turn[2] + 1)], ["budget", chart.budgets[turn[3]], look.line(turn[3])], ["p50 latency", `${short(turn[4])} ms`]);
          return hint(clock(at, span), rows);
        },
      },
      series,
    };
  }

  // Only as many turns as can be told apart are shaded: all of a short run, those in sight of a long one.
  function shade(plot, chart, look) {
    const range = plot.getModel().getComponent("xAxis", 0).axis.scale.getExtent();
    const seen = chart.turns.filter((turn) => turn[1] >= range[0] && turn[0] <= range[1]);
    const areas = seen.length > SHADED_TURNS ? [] : seen.map((turn) => [
      { xAxis: Math.max(turn[0], range[0]), itemStyle: { color: look.line(turn[3]), opacity: 0.16 } }, { xAxis: Math.min(turn[1], range[1]) },
    ]);
    for (const [begin, end] of chart.idle.filter((span) => span[1] >= range[0] && span[0] <= range[1])) {
      areas.push([{ xAxis: Math.max(begin, range[0]), itemStyle: { color: look.soft, opacity: 0.2 } }, { xAxis: Math.min(end, range[1]) }]);
    }
    plot.setOption({ series: [0, ...chart.lanes].map((_, index) => ({ id: `shade-${index}`, markArea: { silent: true, data: areas } })) });
  }

  const KINDS = { scatter, lines, timeline };
  const drawn = [];

  function draw(place) {
    const chart = data[place.dataset.chart];
    const many = chart.kind === "timeline" && chart.turns.length + chart.lanes.reduce((sum, lane) => sum + lane.traces.length, 0) > CANVAS_FROM;
    const figure = place.closest("figure");
    figure.classList.add("drawn");
    if (chart.kind === "timeline") place.style.height = `${60 + (1 + chart.lanes.length) * 136}px`;
    const plot = echarts.init(place, null, { renderer: many ? "canvas" : "svg" });
    const show = () => {
      const look = theme();
      plot.setOption(KINDS[chart.kind](chart, look, place.clientWidth), true);
      if (chart.kind === "timeline") shade(plot, chart, look);
      drawsRectangle = null;
    };
    // A mouse draws a rectangle to zoom into; a finger moves what is in sight.
    let drawsRectangle = null;
    const point = (event) => {
      const draws = event.pointerType === "mouse";
      if (draws !== drawsRectangle) plot.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: draws });
      drawsRectangle = draws;
    };
    for (const kind of ["pointermove", "pointerdown"]) place.addEventListener(kind, point, { capture: true });
    const scale = (factor) => {
      const batch = plot.getOption().dataZoom.flatMap((zoomed, index) => {
        if (zoomed.type !== "inside") return [];
        const [middle, half] = [(zoomed.start + zoomed.end) / 2, ((zoomed.end - zoomed.start) / 2) * factor];
        return [{ dataZoomIndex: index, start: Math.max(0, middle - half), end: Math.min(100, middle + half) }];
      });
      plot.dispatchAction({ type: "dataZoom", batch });
    };
    plot.on("datazoom", () => { if (chart.kind === "timeline") shade(plot, chart, theme()); });
    plot.getZr().on("dblclick", show);
    for (const button of figure.querySelectorAll("button")) {
      button.addEventListener("click", { in: () => scale(0.6), out: () => scale(1 / 0.6), all: show }[button.dataset.zoom]);
    }
    show();
    drawn.push({ plot, show });
  }

  // What is in sight at once, what lies further down when it comes near.
  const near = 600; // pixels
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target.querySelector("[data-chart]"));
      }
    }
  }, { rootMargin: `${near}px` });
  for (const place of document.querySelectorAll("[data-chart]")) {
    const figure = place.closest("figure");
    if (figure.getBoundingClientRect().top < innerHeight + near) draw(place);
    else watcher.observe(figure);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(({ show }) => show()));
  addEventListener("resize", () => drawn.forEach(({ plot }) => plot.resize()));
})();
