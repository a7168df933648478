//! The drawing itself, alike for SVG and PNG.

use crate::cli::arguments::wrong;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::path::Path;

/// Width and height in px.
const SIZE: (u32, u32) = (960, 640);
const FONT: &str = "sans-serif";

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) group: String,
    pub(super) measured: f64,
    pub(super) predicted: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// One place on a curve, with its interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// What is drawn.
#[derive(Debug)]
pub(super) enum Picture {
    Fit {
        title: String,
        points: Vec<Point>,
    },
    Residuals {
        title: String,
        left: Vec<Point>,
        own: Vec<Point>,
    },
    Curve {
        title: String,
        x: String,
        bands: Vec<Band>,
    },
}

/// Writes a picture; the file's ending says how.
pub(super) fn write(path: &Path, picture: &Picture) -> anyhow::Result<()> {
    // Fonts come with the program: a system may have none.
    let registered = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    if registered.is_err() {
        anyhow::bail!("the font that comes with the program cannot be read");
    }
    let failed = |error: String| anyhow::anyhow!("cannot write {}: {error}", path.display());
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("svg") => {
            let root = SVGBackend::new(path, SIZE).into_drawing_area();
            paint(&root, picture).map_err(failed)
        }
        Some("png") => {
            let root = BitMapBackend::new(path, SIZE).into_drawing_area();
            paint(&root, picture).map_err(failed)
        }
        _ => Err(wrong(format!(
            "--out {} ends in neither .svg nor .png",
            path.display()
        ))),
    }
}

fn paint<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    picture: &Picture,
) -> Result<(), String> {
    root.fill(&WHITE).map_err(text)?;
    match picture {
        Picture::Fit { title, points } => fit(root, title, points)?,
        Picture::Residuals { title, left, own } => residuals(root, title, left, own)?,
        Picture::Curve { title, x, bands } => curve(root, title, x, bands)?,
    }
    root.present().map_err(text)
}

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

/// Least and most of some positive numbers, with a margin.
fn around(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::MAX, 0.0_f64);
    for value in values.filter(|value| value.is_finite() && *value > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        1.0..10.0
    } else {
        low / 1.3..high * 1.3
    }
}

fn groups(points: &[Point]) -> Vec<&str> {
    let mut groups: Vec<&str> = points.iter().map(|point| point.group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn fit<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    title: &str,
    points: &[Point],
) -> Result<(), String> {
    let all = points
        .iter()
        .flat_map(|p| [p.measured, p.predicted, p.low, p.high]);
    let range = around(all);
    let mut chart = ChartBuilder::on(root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(range.clone().log_scale(), range.clone().log_scale())
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc("measured, J an image")
        .y_desc("predicted, J an image")
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .draw()
        .map_err(text)?;
    let diagonal = [(range.start, range.start), (range.end, range.end)];
    chart
        .draw_series(LineSeries::new(diagonal, BLACK.mix(0.5)))
        .map_err(text)?;
    for (number, group) in groups(points).into_iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let of = || points.iter().filter(move |point| point.group == group);
        let bars = of().map(|p| {
            PathElement::new(
                vec![(p.measured, p.low), (p.measured, p.high)],
                colour.mix(0.35),
            )
        });
        chart.draw_series(bars).map_err(text)?;
        let dots = of().map(|p| Circle::new((p.measured, p.predicted), 4, colour.filled()));
        chart
            .draw_series(dots)
            .map_err(text)?
            .label(group)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 13))
        .draw()
        .map_err(text)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place on an axis"
)]
fn residuals<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    title: &str,
    left: &[Point],
    own: &[Point],
) -> Result<(), String> {
    let names = groups(left);
    let most = left
        .iter()
        .map(|p| (p.predicted / p.measured - 1.0).abs() * 100.0)
        .fold(5.0, f64::max)
        * 1.15;
    let count = names.len() as f64;
    let mut chart = ChartBuilder::on(root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(190)
        .build_cartesian_2d(-most..most, 0.0..count)
        .map_err(text)?;
    let label = |y: &f64| {
        names
            .get(y.floor() as usize)
            .map_or("", |name| *name)
            .to_owned()
    };
    chart
        .configure_mesh()
        .x_desc("percent; filled: left out, hollow: in sample")
        .disable_y_mesh()
        .y_labels(names.len())
        .y_label_formatter(&label)
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .draw()
        .map_err(text)?;
    for (number, group) in names.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let place = number as f64;
        let off = |p: &Point| (p.predicted / p.measured - 1.0) * 100.0;
        let of = |points: &[Point]| -> Vec<f64> {
            points
                .iter()
                .filter(|p| p.group == *group)
                .map(off)
                .collect()
        };
        let dots = of(left);
        let filled = dots
            .iter()
            .map(|x| Circle::new((*x, place + 0.35), 4, colour.filled()));
        chart.draw_series(filled).map_err(text)?;
        let dots = of(own);
        let hollow = dots
            .iter()
            .map(|x| Circle::new((*x, place + 0.65), 4, colour));
        chart.draw_series(hollow).map_err(text)?;
    }
    Ok(())
}

fn curve<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    title: &str,
    x: &str,
    bands: &[Band],
) -> Result<(), String> {
    let across = bands.first().map_or(0.0, |b| b.x)..bands.last().map_or(1.0, |b| b.x);
    let up = 0.0..bands.iter().map(|b| b.high).fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(across, up)
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc("J an image")
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .draw()
        .map_err(text)?;
    let high = bands.iter().map(|b| (b.x, b.high));
    let low = bands.iter().rev().map(|b| (b.x, b.low));
    let area = Polygon::new(high.chain(low).collect::<Vec<_>>(), BLUE.mix(0.15));
    chart.draw_series([area]).map_err(text)?;
    let line = bands.iter().map(|b| (b.x, b.y));
    chart
        .draw_series(LineSeries::new(line, BLUE.stroke_width(2)))
        .map_err(text)?;
    Ok(())
}
