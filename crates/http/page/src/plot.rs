//! Draws plots with axes and a legend, as lines of an SVG in the page.

use std::time::Duration;

use serde::Serialize;

use crate::text;

/// The width of a plot, in its own units.
const WIDTH: f64 = 240.0;
/// The height of a plot, in its own units.
const HEIGHT: f64 = 48.0;
/// The margin for the width of the line itself.
const MARGIN: f64 = 2.0;
/// The possible ends of a scale, times a power of ten. Half of each is a short number too.
const SCALE_ENDS: [f64; 5] = [1.0, 2.0, 2.5, 5.0, 10.0];

/// A plot in the form that the template shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    /// The unit of the numbers at the axis, such as "in ms".
    pub(crate) unit: String,
    /// A sentence that describes the plot to readers who cannot see it.
    pub(crate) description: String,
    /// The number at the top of the vertical axis, which begins at zero.
    pub(crate) top: String,
    /// The number in the middle of the vertical axis.
    pub(crate) middle: String,
    /// How long ago the horizontal axis begins; it ends now.
    pub(crate) begins: String,
    /// How long ago the middle of the horizontal axis is.
    pub(crate) half: String,
    pub(crate) lines: Vec<PlotLine>,
}

/// One line and its entry in the legend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlotLine {
    pub(crate) label: &'static str,
    /// The last number of the line, with its unit.
    pub(crate) value: String,
    /// The CSS class, which sets the colour and the dashes.
    pub(crate) class: &'static str,
    /// The connected pieces of the line, between its gaps.
    pub(crate) pieces: Vec<String>,
}

/// The data of a line.
#[derive(Clone, Debug)]
pub(crate) struct PlotSeries {
    pub(crate) label: &'static str,
    pub(crate) class: &'static str,
    /// The points, the oldest first: the position on the horizontal axis, from 0 to 1, and the
    /// number, if it is known.
    pub(crate) points: Vec<(f64, Option<f64>)>,
}

/// The quantity that a plot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlotQuantity {
    PerSecond,
    Seconds,
    Bytes,
    BytesPerSecond,
}

impl PlotQuantity {
    /// A number with its unit.
    fn show(self, number: f64) -> String {
        match self {
            Self::PerSecond => text::rate(number),
            Self::Seconds => text::seconds(number),
            Self::Bytes => text::bytes(number),
            Self::BytesPerSecond => format!("{}/s", text::bytes(number)),
        }
    }

    /// The unit of an axis that reaches `most`, and the size of one unit.
    fn unit(self, most: f64) -> (f64, String) {
        match self {
            Self::PerSecond => (1.0, "per second".to_owned()),
            Self::Seconds => {
                let (one, unit) = text::seconds_unit(most);
                (one, format!("in {unit}"))
            }
            Self::Bytes => {
                let (one, unit) = text::bytes_unit(most);
                (one, format!("in {unit}"))
            }
            Self::BytesPerSecond => {
                let (one, unit) = text::bytes_unit(most);
                (one, format!("in {unit}/s"))
            }
        }
    }
}

/// Draws lines with one scale, which begins at zero. The horizontal axis covers the last `span`.
pub(crate) fn plot(
    title: &'static str,
    quantity: PlotQuantity,
    span: Duration,
    series: &[PlotSeries],
) -> Plot {
    let points = || series.iter().flat_map(|one| &one.points);
    let most = points()
        .filter_map(|(_, number)| *number)
        .fold(0.0, f64::max);
    let (one, unit) = quantity.unit(most);
    let top = scale_end(most / one);
    let lines: Vec<_> = series
        .iter()
        .map(|line| PlotLine {
            label: line.label,
            value: line
                .points
                .last()
                .and_then(|(_, number)| *number)
                .map_or_else(|| "–".to_owned(), |number| quantity.show(number)),
            class: line.class,
            pieces: pieces(&line.points, top * one),
        })
        .collect();
    let now: Vec<_> = lines
        .iter()
        .map(|line| format!("{} {} now", line.label, line.value))
        .collect();
    let seconds = span.as_secs();
    Plot {
        title,
        description: format!(
            "{title} in the last {}: {}; at most {}",
            text::duration(seconds),
            now.join(", "),
            quantity.show(most)
        ),
        unit,
        top: top.to_string(),
        middle: (top / 2.0).to_string(),
        begins: text::duration(seconds),
        half: text::duration(seconds / 2),
        lines,
    }
}

/// The end of a scale for numbers up to `most`: a short number that is not smaller.
fn scale_end(most: f64) -> f64 {
    /// The largest power of ten of a scale: numbers beyond it are mistakes.
    const POWER_MAX: f64 = 12.0;
    if !most.is_finite() || most <= 0.0 {
        return 1.0;
    }
    let power = most.log10().floor().clamp(-POWER_MAX, POWER_MAX);
    // A negative power of ten has no exact floating-point form, but the division by a positive one
    // rounds only once.
    let scaled = |end: f64| match power < 0.0 {
        true => end / 10f64.powf(-power),
        false => end * 10f64.powf(power),
    };
    let ends = SCALE_ENDS.map(scaled);
    ends.into_iter().find(|end| *end >= most).unwrap_or(most)
}

fn pieces(points: &[(f64, Option<f64>)], top: f64) -> Vec<String> {
    let mut pieces = Vec::new();
    for piece in points.split(|(_, number)| number.is_none()) {
        let mut drawn = Vec::new();
        for (at, number) in piece {
            let part = (number.unwrap_or(0.0) / top).clamp(0.0, 1.0);
            let x = WIDTH * at.clamp(0.0, 1.0);
            let y = HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * part;
            drawn.push((x, y));
        }
        // One point makes no line, so a short line is drawn in its place.
        if let [(x, y)] = *drawn.as_slice() {
            let (from, to) = ((x - 2.0).max(0.0), (x + 2.0).min(WIDTH));
            drawn = vec![(from, y), (to, y)];
        }
        if !drawn.is_empty() {
            let drawn: Vec<_> = drawn
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            pieces.push(drawn.join(" "));
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: Vec<(f64, Option<f64>)>) -> PlotSeries {
        PlotSeries {
            label: "all",
            class: "line",
            points,
        }
    }

    #[test]
    fn a_line_lies_where_its_times_are_and_is_torn_where_nothing_is_known() {
        // The second sample came late.
        let points = vec![
            (0.0, Some(0.0)),
            (0.5, Some(10.0)),
            (0.75, None),
            (1.0, Some(5.0)),
        ];
        let span = Duration::from_secs(900);
        let plot = plot("Calls", PlotQuantity::PerSecond, span, &[series(points)]);
        assert_eq!(
            plot.lines[0].pieces,
            ["0.0,46.0 120.0,2.0", "238.0,24.0 240.0,24.0"]
        );
        assert_eq!(
            plot.description,
            "Calls in the last 15 min: all 5/s now; at most 10/s"
        );
    }

    #[test]
    fn axes_and_legend_have_numbers_with_their_units() {
        let two = [
            PlotSeries {
                label: "median",
                ..series(vec![(0.0, Some(0.002)), (1.0, Some(0.0016))])
            },
            PlotSeries {
                label: "slowest",
                ..series(vec![(0.0, Some(0.237)), (1.0, None)])
            },
        ];
        let plot = plot(
            "Duration",
            PlotQuantity::Seconds,
            Duration::from_secs(90),
            &two,
        );
        assert_eq!(plot.unit, "in ms");
        assert_eq!((plot.top.as_str(), plot.middle.as_str()), ("250", "125"));
        assert_eq!(
            (plot.begins.as_str(), plot.half.as_str()),
            ("1 min", "45 s")
        );
        let legend: Vec<_> = plot
            .lines
            .iter()
            .map(|line| (line.label, line.value.as_str()))
            .collect();
        assert_eq!(legend, [("median", "1.60 ms"), ("slowest", "–")]);
    }

    #[test]
    fn each_quantity_has_the_unit_of_its_largest_number() {
        for (quantity, most, unit, top) in [
            (PlotQuantity::PerSecond, 9.62, "per second", "10"),
            (PlotQuantity::PerSecond, 0.03, "per second", "0.05"),
            (PlotQuantity::Seconds, 2.0, "in s", "2"),
            (PlotQuantity::Seconds, 0.000_3, "in µs", "500"),
            (PlotQuantity::Bytes, 39.2 * 1_048_576.0, "in MiB", "50"),
            (PlotQuantity::BytesPerSecond, 22_000.0, "in KiB/s", "25"),
        ] {
            let points = series(vec![(1.0, Some(most))]);
            let plot = plot("x", quantity, Duration::ZERO, &[points]);
            assert_eq!((plot.unit.as_str(), plot.top.as_str()), (unit, top));
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let points = series(vec![(0.0, None), (1.0, None)]);
        let empty = plot("Calls", PlotQuantity::Seconds, Duration::ZERO, &[points]);
        assert!(empty.lines[0].pieces.is_empty());
        assert_eq!(
            (empty.lines[0].value.as_str(), empty.top.as_str()),
            ("–", "1")
        );
        let flat = series(vec![(0.0, Some(0.0)), (1.0, Some(0.0))]);
        let flat = plot("Calls", PlotQuantity::PerSecond, Duration::ZERO, &[flat]);
        assert_eq!(flat.lines[0].pieces, ["0.0,46.0 240.0,46.0"]);
        let odd = series(vec![(f64::INFINITY, Some(1e300))]);
        let odd = plot("Calls", PlotQuantity::PerSecond, Duration::ZERO, &[odd]);
        assert_eq!(odd.lines[0].pieces.len(), 1);
    }
}
