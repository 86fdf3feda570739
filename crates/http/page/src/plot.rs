//! Small plots, as lines of an SVG in the page.

use serde::Serialize;

/// Width of a plot, in its own units.
const WIDTH: f64 = 240.0;
/// Height of a plot, in its own units.
const HEIGHT: f64 = 48.0;
/// Room for the line's own width.
const MARGIN: f64 = 2.0;

/// A plot as the template shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    /// The last number, with its unit.
    pub(crate) value: String,
    /// The same for those who do not see the plot.
    pub(crate) about: String,
    /// What the top of the plot stands for.
    pub(crate) most: String,
    pub(crate) lines: Vec<PlotLine>,
}

/// One line, in as many pieces as it is torn into.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlotLine {
    pub(crate) class: &'static str,
    pub(crate) pieces: Vec<String>,
}

/// What is drawn: a class and its numbers, oldest first.
pub(crate) type Series = (&'static str, Vec<Option<f64>>);

/// Draws lines to one scale that begins at zero. `show` writes a number with its unit.
pub(crate) fn plot(
    title: &'static str,
    span: &str,
    series: &[Series],
    show: impl Fn(f64) -> String,
) -> Plot {
    let numbers = || series.iter().flat_map(|(_, numbers)| numbers).flatten();
    let most = numbers().copied().fold(0.0, f64::max);
    let lines = series.iter().map(|(class, numbers)| PlotLine {
        class,
        pieces: pieces(numbers, most),
    });
    let last = series
        .iter()
        .map(|(_, numbers)| numbers.last().copied().flatten());
    let value: Vec<_> = last
        .map(|last| last.map_or_else(|| "–".to_owned(), &show))
        .collect();
    let value = value.join(" / ");
    Plot {
        title,
        about: format!(
            "{title}: {value} now, at most {} in the last {span}",
            show(most)
        ),
        value,
        most: show(most),
        lines: lines.collect(),
    }
}

fn pieces(numbers: &[Option<f64>], most: f64) -> Vec<String> {
    let steps = numbers.len().saturating_sub(1).max(1) as f64;
    let mut pieces = Vec::new();
    for piece in indexed(numbers).split(|(_, number)| number.is_none()) {
        let mut points: Vec<String> = Vec::new();
        for (n, number) in piece {
            let part = if most > 0.0 {
                number.unwrap_or(0.0) / most
            } else {
                0.0
            };
            let x = WIDTH * *n as f64 / steps;
            let y = HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * part;
            points.push(format!("{x:.1},{y:.1}"));
        }
        // One point alone is no line: a short one stands for it.
        if let [only] = points.as_slice() {
            let (x, y) = only.split_once(',').unwrap_or(("0", "0"));
            let x: f64 = x.parse().unwrap_or(0.0);
            points = vec![
                format!("{:.1},{y}", (x - 1.0).max(0.0)),
                format!("{:.1},{y}", x + 1.0),
            ];
        }
        if !points.is_empty() {
            pieces.push(points.join(" "));
        }
    }
    pieces
}

fn indexed(numbers: &[Option<f64>]) -> Vec<(usize, Option<f64>)> {
    numbers.iter().copied().enumerate().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fills_the_plot_and_is_torn_where_nothing_is_known() {
        let numbers = vec![Some(0.0), Some(10.0), None, Some(5.0)];
        let plot = plot("Calls", "15 min", &[("line", numbers)], |n| {
            format!("{n}/s")
        });
        assert_eq!(
            plot.lines[0].pieces,
            ["0.0,46.0 80.0,2.0", "239.0,24.0 241.0,24.0"]
        );
        assert_eq!((plot.value.as_str(), plot.most.as_str()), ("5/s", "10/s"));
        assert!(plot.about.contains("15 min"));
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let plot = plot("Calls", "0 s", &[("line", vec![None, None])], |n| {
            n.to_string()
        });
        assert!(plot.lines[0].pieces.is_empty());
        assert_eq!(plot.value, "–");
        let flat = pieces(&[Some(0.0), Some(0.0)], 0.0);
        assert_eq!(flat, ["0.0,46.0 240.0,46.0"]);
    }
}
