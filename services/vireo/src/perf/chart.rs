//! Pictures as SVG: how latencies are distributed, and how a run went over time.

use std::error::Error;

use plotters::chart::ChartContext;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::{
    ChartBuilder, Color, DrawingArea, IntoDrawingArea, IntoLogRange, LineSeries, PathElement,
    RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, WHITE,
};
use plotters::style::{IntoFont, TextStyle};

use super::report::PointReport;
use super::tally::Tally;
use super::units::{show_count, show_nanos};

/// Pixels.
const WIDTH: u32 = 900;
const HISTOGRAM_HEIGHT: u32 = 480;
const TIMELINE_HEIGHT: u32 = 640;
/// Bars for each factor of ten.
const BARS_PER_DECADE: f64 = 40.0;
/// One colour a series: told apart also by those who do not see red and green.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// How much higher than what is drawn an axis is, so that the legend hides nothing.
const LEGEND_ROOM: f64 = 1.3;
const FONT: &str = "sans-serif";

/// Latencies of one series.
#[derive(Debug)]
pub struct LatencySeries<'a> {
    /// What the legend calls it.
    pub name: String,
    /// The latencies.
    pub tally: &'a Tally,
}

/// A run over time.
#[derive(Debug)]
pub struct TimeSeries<'a> {
    /// What the legend calls it.
    pub name: String,
    /// Its points, evenly spaced.
    pub points: &'a [PointReport],
}

/// Draws the share of I/Os by latency, with the median and the 99 % and 99.9 % quantiles.
///
/// # Errors
/// What the drawing library says.
pub fn histogram(title: &str, series: &[LatencySeries<'_>]) -> Result<String, Box<dyn Error>> {
    let series: Vec<_> = series.iter().filter(|series| series.tally.ios > 0).collect();
    let bars: Vec<_> = series.iter().map(|series| bars(series.tally)).collect();
    let low = series.iter().map(|series| series.tally.latencies.min().max(1)).min().unwrap_or(1);
    // The longest of many million says little and would press the rest together.
    let high = series.iter().map(|series| series.tally.latencies.value_at_quantile(0.99999)).max();
    let low = low as f64 * 0.8;
    let high = (high.unwrap_or(10) as f64 * 1.25).max(low * 2.0);
    let top = bars.iter().flatten().map(|bar| bar.2).fold(0.0, f64::max).max(0.1) * LEGEND_ROOM;
    let mut text = String::new();
    {
        let root =
            SVGBackend::with_string(&mut text, (WIDTH, HISTOGRAM_HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, style(17))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(58)
            .build_cartesian_2d((low..high).log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_labels(12)
            .x_desc("latency")
            .y_desc("share of I/Os, %")
            .label_style(style(13))
            .axis_desc_style(style(14))
            .x_label_formatter(&|nanos| show_nanos(*nanos))
            .y_label_formatter(&|share| format!("{share:.1}"))
            .draw()?;
        for (index, (series, bars)) in series.iter().zip(&bars).enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let rectangles = bars.iter().filter(|bar| bar.0 < high).map(|&(from, to, share)| {
                Rectangle::new([(from, 0.0), (to.min(high), share)], colour.mix(0.55).filled())
            });
            let latencies = &series.tally.latencies;
            let [p50, p99, p999] =
                [0.5, 0.99, 0.999].map(|q| latencies.value_at_quantile(q) as f64);
            let label = format!(
                "{}: median {}, p99 {}, p99.9 {}",
                series.name,
                show_nanos(p50),
                show_nanos(p99),
                show_nanos(p999)
            );
            chart.draw_series(rectangles)?.label(label).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 16, y + 5)], colour.mix(0.55).filled())
            });
            for quantile in [p50, p99, p999].into_iter().filter(|quantile| *quantile < high) {
                let line = PathElement::new(
                    vec![(quantile, 0.0), (quantile, top)],
                    colour.stroke_width(1),
                );
                chart.draw_series(std::iter::once(line))?;
            }
        }
        legend(&mut chart)?;
        root.present()?;
    }
    Ok(text)
}

/// Draws I/Os a second above, and mean and longest latency below, over the seconds of the run.
///
/// # Errors
/// What the drawing library says.
pub fn timeline(title: &str, series: &[TimeSeries<'_>]) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, TIMELINE_HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, below) = root.split_vertically(TIMELINE_HEIGHT / 2);
        rates(&above, title, series)?;
        latencies(&below, series)?;
        root.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn rates(area: &Area<'_>, title: &str, series: &[TimeSeries<'_>]) -> Result<(), Box<dyn Error>> {
    let top = points(series).map(|point| point.iops).fold(1.0, f64::max) * LEGEND_ROOM;
    let mut chart = ChartBuilder::on(area)
        .caption(title, style(17))
        .margin(14)
        .x_label_area_size(30)
        .y_label_area_size(78)
        .build_cartesian_2d(0.0..seconds(series), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .y_desc("IOPS")
        .label_style(style(13))
        .axis_desc_style(style(14))
        .y_label_formatter(&|iops| show_count(*iops))
        .draw()?;
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line = series.points.iter().map(|point| (point.seconds, point.iops));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(series.name.as_str())
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
    }
    legend(&mut chart)
}

fn latencies(area: &Area<'_>, series: &[TimeSeries<'_>]) -> Result<(), Box<dyn Error>> {
    let busy = || points(series).filter(|point| point.mean_ns > 0.0);
    let low = busy().map(|point| point.mean_ns).fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() { low * 0.7 } else { 1.0 };
    let high = busy().map(|point| point.max_ns as f64).fold(low * 2.0, f64::max);
    // As much of the axis as the others leave for the legend, which is a power here.
    let high = high * (high / low).powf(LEGEND_ROOM - 1.0);
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(78)
        .build_cartesian_2d(0.0..seconds(series), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_desc("seconds")
        .y_desc("latency")
        .label_style(style(13))
        .axis_desc_style(style(14))
        .y_label_formatter(&|nanos| show_nanos(*nanos))
        .draw()?;
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let busy = || series.points.iter().filter(|point| point.mean_ns > 0.0);
        let mean = busy().map(|point| (point.seconds, point.mean_ns));
        let max = busy().map(|point| (point.seconds, point.max_ns as f64));
        chart
            .draw_series(LineSeries::new(mean, colour.stroke_width(2)))?
            .label(format!("{}: mean", series.name))
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        chart
            .draw_series(LineSeries::new(max, colour.mix(0.4).stroke_width(1)))?
            .label(format!("{}: longest", series.name))
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.mix(0.4).stroke_width(1))
            });
    }
    legend(&mut chart)
}

fn legend<'a, 'b: 'a, C>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, C>,
) -> Result<(), Box<dyn Error>>
where
    C: CoordTranslate,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font(style(13))
        .draw()?;
    Ok(())
}

fn points<'a>(series: &'a [TimeSeries<'_>]) -> impl Iterator<Item = &'a PointReport> {
    series.iter().flat_map(|series| series.points)
}

/// The end of the axis of seconds.
fn seconds(series: &[TimeSeries<'_>]) -> f64 {
    points(series).map(|point| point.seconds).fold(0.01, f64::max)
}

fn style(size: i32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&TEXT)
}

/// Bars of equal width on a logarithmic axis: from, to, share in percent.
fn bars(tally: &Tally) -> Vec<(f64, f64, f64)> {
    let mut bars: Vec<(f64, f64, f64)> = Vec::new();
    let total = tally.latencies.len().max(1) as f64;
    for value in tally.latencies.iter_recorded() {
        let share = value.count_since_last_iteration() as f64 / total * 100.0;
        let at = (value.value_iterated_to().max(1) as f64).log10() * BARS_PER_DECADE;
        let edge = |at: f64| 10_f64.powf(at / BARS_PER_DECADE);
        let (from, to) = (edge(at.floor()), edge(at.floor() + 1.0));
        match bars.last_mut() {
            Some(last) if last.0 == from => last.2 += share,
            _ => bars.push((from, to, share)),
        }
    }
    bars
}
