//! Plots as SVG text.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::{Error, Result};

const SIZE: (u32, u32) = (760, 420);

/// Points under one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub name: String,
    pub points: Vec<[f64; 2]>,
    /// Low and high at every point, drawn as a band around a line.
    pub band: Vec<[f64; 2]>,
}

impl Series {
    /// Without a band.
    pub fn new(name: impl Into<String>, points: Vec<[f64; 2]>) -> Self {
        Self { name: name.into(), points, band: Vec::new() }
    }
}

/// What a plot and its axes are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Titles<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

/// Lines through points, with bands.
pub(super) fn lines(titles: Titles, series: &[Series]) -> Result<String> {
    xy(titles, series, true)
}

/// Points by themselves.
pub(super) fn points(titles: Titles, series: &[Series]) -> Result<String> {
    xy(titles, series, false)
}

/// Groups of bars: one value per category for each series, with a standard deviation where it is above 0.
pub(super) fn bars(
    titles: Titles,
    categories: &[String],
    series: &[(String, Vec<[f64; 2]>)],
) -> Result<String> {
    let ends = series.iter().flat_map(|(_, bars)| bars.iter().flat_map(|[mean, sd]| [mean - sd, mean + sd]));
    let [low, high] = range(ends.chain([0.0]));
    let mut svg = String::new();
    {
        let root = canvas(&mut svg)?;
        let label = |x: &f64| match x.fract() {
            half if (half - 0.5).abs() < 1e-6 => categories.get(*x as usize).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let mut chart =
            drawn(builder(&root, titles).build_cartesian_2d(0.0..categories.len() as f64, low..high))?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().x_labels(2 * categories.len() + 1).x_label_formatter(&label);
        drawn(mesh.x_desc(titles.x).y_desc(titles.y).draw())?;
        let width = 0.8 / series.len().max(1) as f64;
        for (index, (name, bars)) in series.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let left = |category: usize| category as f64 + 0.1 + index as f64 * width;
            let bar = |(category, [mean, _]): (usize, &[f64; 2])| {
                Rectangle::new([(left(category), 0.0), (left(category) + 0.9 * width, *mean)], color.filled())
            };
            let drawn_bars = drawn(chart.draw_series(bars.iter().enumerate().map(bar)))?;
            drawn_bars
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
            let whisker = |(category, [mean, sd]): (usize, &[f64; 2])| {
                let x = left(category) + 0.45 * width;
                PathElement::new([(x, mean - sd), (x, mean + sd)], BLACK)
            };
            let spread = bars.iter().enumerate().filter(|(_, [_, sd])| *sd > 0.0);
            drawn(chart.draw_series(spread.map(whisker)))?;
        }
        drawn(chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw())?;
        drawn(root.present())?;
    }
    Ok(svg)
}

/// How often values fall into each of `bins` equal stretches.
pub(super) fn histogram(titles: Titles, values: &[(String, Vec<f64>)], bins: usize) -> Result<String> {
    let [low, high] = range(values.iter().flat_map(|(_, values)| values.iter().copied()));
    let width = (high - low) / bins.max(1) as f64;
    let series = values.iter().map(|(name, values)| {
        let mut counts = vec![0.0; bins];
        for value in values {
            let bin = (((value - low) / width) as usize).min(bins.saturating_sub(1));
            if let Some(count) = counts.get_mut(bin) {
                *count += 1.0 / values.len() as f64;
            }
        }
        let steps = counts.iter().enumerate().flat_map(|(bin, &share)| {
            [[low + bin as f64 * width, share], [low + (bin + 1) as f64 * width, share]]
        });
        Series::new(name, steps.collect())
    });
    lines(titles, &series.collect::<Vec<_>>())
}

fn xy(titles: Titles, series: &[Series], joined: bool) -> Result<String> {
    let all = || series.iter().flat_map(|s| &s.points);
    let bands = series.iter().flat_map(|s| s.band.iter().flatten().copied());
    let [left, right] = range(all().map(|p| p[0]));
    let [low, high] = range(all().map(|p| p[1]).chain(bands));
    let mut svg = String::new();
    {
        let root = canvas(&mut svg)?;
        let mut chart = drawn(builder(&root, titles).build_cartesian_2d(left..right, low..high))?;
        drawn(chart.configure_mesh().x_desc(titles.x).y_desc(titles.y).draw())?;
        for (index, Series { name, points, band }) in series.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let at = points.iter().map(|&[x, y]| (x, y));
            if !band.is_empty() {
                let up = points.iter().zip(band).map(|([x, _], [low, _])| (*x, *low));
                let down = points.iter().zip(band).rev().map(|([x, _], [_, high])| (*x, *high));
                let outline: Vec<(f64, f64)> = up.chain(down).collect();
                drawn(chart.draw_series(std::iter::once(Polygon::new(outline, color.mix(0.2).filled()))))?;
            }
            let entry = match joined {
                true => drawn(chart.draw_series(LineSeries::new(at, color.stroke_width(2))))?,
                false => drawn(chart.draw_series(at.map(|p| Circle::new(p, 3, color.filled()))))?,
            };
            entry
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
        }
        drawn(chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw())?;
        drawn(root.present())?;
    }
    Ok(svg)
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn canvas(svg: &mut String) -> Result<Canvas<'_>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    drawn(root.fill(&WHITE))?;
    Ok(root)
}

fn builder<'a, 'b>(root: &'a Canvas<'b>, titles: Titles) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(root);
    builder.caption(titles.title, ("sans-serif", 17)).margin(10).x_label_area_size(42).y_label_area_size(68);
    builder
}

/// The least and the largest value, with some room; never empty.
fn range(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let finite = values.filter(|value| value.is_finite());
    let ends = finite.fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], v| [a.min(v), b.max(v)]);
    let [low, high] = if ends[0] <= ends[1] { ends } else { [0.0, 1.0] };
    let room = if high - low > 1e-9 * high.abs() { 0.04 * (high - low) } else { 0.5 * high.abs().max(1.0) };
    [low - room, high + room]
}

fn drawn<T>(result: std::result::Result<T, impl Display>) -> Result<T> {
    result.map_err(|error| Error::Failed(format!("plot: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: Titles = Titles { title: "What & why", x: "x", y: "y" };

    #[test]
    fn plots_name_their_series_and_escape_text() {
        let band = vec![[0.0, 2.0], [1.0, 3.0]];
        let series = Series { band, ..Series::new("one", vec![[0.0, 1.0], [1.0, 2.0]]) };
        let svg = lines(TITLES, &[series]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("one") && svg.contains("polygon"), "{svg}");
        assert!(svg.contains("What &amp; why"));
        let svg =
            bars(TITLES, &["a".into(), "b".into()], &[("two".into(), vec![[1.0, 0.5], [3.0, 0.0]])]).unwrap();
        assert!(svg.contains("two") && svg.contains(">\nb\n</text>"), "{svg}");
    }

    #[test]
    fn nothing_and_what_is_not_finite_can_be_drawn() {
        assert!(lines(TITLES, &[]).is_ok());
        assert!(points(TITLES, &[Series::new("none", vec![[0.0, 0.0]])]).is_ok());
        assert_eq!(range([f64::NAN, f64::INFINITY].into_iter()), [-0.04, 1.04]);
        assert!(histogram(TITLES, &[("h".into(), vec![1.0, 1.0, 1.0])], 8).is_ok());
    }
}
