"use strict";
/* Plots by Bokeh, in the colours of report.css. */
qc.charts = {
  color: (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(),

  figure(options) {
    const plot = new Bokeh.Plotting.Figure({
      sizing_mode: "stretch_both", toolbar_location: null, tools: [], output_backend: "canvas",
      background_fill_color: this.color("panel"), border_fill_color: this.color("panel"), outline_line_color: null,
      ...options,
    });
    for (const axis of plot.axes) {
      Object.assign(axis, {
        axis_label_text_color: this.color("text"), major_label_text_color: this.color("text"),
        axis_line_color: this.color("line"), major_tick_line_color: this.color("line"), minor_tick_line_color: null,
        axis_label_text_font_style: "normal", axis_label_text_font_size: "13px", major_label_text_font_size: "11px",
      });
    }
    for (const axis of [...plot.xaxes, ...plot.yaxes]) {
      if (axis.formatter instanceof Bokeh.BasicTickFormatter) axis.formatter.power_limit_low = -6;
    }
    for (const grid of plot.grids) grid.grid_line_color = this.color("line");
    plot.xgrids.forEach((grid) => { grid.grid_line_color = null; });
    return plot;
  },

  /* Replace an older plot. */
  async show(plot, place) {
    place.bokehView?.remove();
    place.replaceChildren();
    place.bokehView = await Bokeh.Plotting.show(plot, place);
  },

  /* Bars of rejected shares, left to right in the order of rows. */
  async organs(rows, place) {
    const names = rows.map((row) => qc.words(row.organ));
    const factors = names.map((name, n) => (names.indexOf(name) === n ? name : `${name} ${rows[n].label}`));
    const shares = rows.map((row) => (row.labels ? (100 * row.rejected) / row.labels : 0));
    const source = new Bokeh.ColumnDataSource({ data: {
      organ: factors, share: shares, rejected: rows.map((row) => row.rejected), labels: rows.map((row) => row.labels),
    } });
    const tooltips = [["organ", "@organ"], ["rejected", "@rejected of @labels (@share{0.00} %)"]];
    const plot = this.figure({
      x_range: new Bokeh.FactorRange({ factors }), y_range: new Bokeh.DataRange1d({ start: 0 }),
      y_axis_label: "rejected, %", tools: [new Bokeh.HoverTool({ tooltips })],
    });
    plot.xaxes[0].major_label_orientation = rows.length > 12 ? "vertical" : "horizontal";
    plot.vbar({ field: "organ" }, 0.8, { field: "share" }, 0,
      { source, fill_color: this.color("rejected"), line_color: null });
    await this.show(plot, place);
  },

  /* Kept and rejected labels of an organ, with its thresholds. */
  async histogram(feature, one, place) {
    const step = (one.stop - one.start) / one.kept.length;
    const left = one.kept.map((_, bin) => one.start + bin * step);
    const top = one.kept.map((kept, bin) => kept + one.rejected[bin]);
    const source = new Bokeh.ColumnDataSource({ data: {
      left, right: left.map((x) => x + step), kept: one.kept, rejected: one.rejected, top,
      range: left.map((x) => `${qc.number(x)} to ${qc.number(x + step)}`),
    } });
    const tooltips = [[qc.words(feature), "@range"], ["kept", "@kept"], ["rejected", "@rejected"]];
    const plot = this.figure({
      x_range: new Bokeh.Range1d({ start: one.start, end: one.stop }), y_range: new Bokeh.DataRange1d({ start: 0 }),
      x_axis_label: qc.words(feature), y_axis_label: "labels", tools: [new Bokeh.HoverTool({ tooltips })],
    });
    const edges = [{ field: "left" }, { field: "right" }];
    plot.quad(...edges, { field: "kept" }, 0, { source, fill_color: this.color("kept"), line_color: null });
    plot.quad(...edges, { field: "top" }, { field: "kept" },
      { source, fill_color: this.color("rejected"), line_color: null });
    this.mark(plot, one.low, "threshold", "dashed");
    this.mark(plot, one.high, "threshold", "dashed");
    this.mark(plot, one.median, "median", "dotted");
    await this.show(plot, place);
  },

  mark(plot, location, color, dash) {
    if (location === null) return;
    plot.add_layout(new Bokeh.Span({
      location, dimension: "height", line_color: this.color(color), line_dash: dash, line_width: 2,
    }));
  },
};
