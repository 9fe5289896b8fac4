//! `--plot`: one SVG of MiB/s over time, epoch after epoch, and of each epoch as
//! a bar. Written by hand: it is rectangles, lines and text.

use std::fmt::Write as _;

use super::measurement::Row;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 870.0;
/// Top and bottom of the two charts.
const OVER_TIME: (f64, f64) = (60.0, 300.0);
const BARS_TOP: f64 = 350.0;
const BAR_PITCH: f64 = 26.0;
/// From the left edge: the names of the bars, and the bars.
const BAR_LEFT: f64 = 160.0;
const BAR_RIGHT: f64 = 780.0;
/// Steps that an epoch is drawn with.
const STEPS: usize = 300;
/// Lines across a chart.
const GRID_LINES: f64 = 4.0;
/// Told apart by those who see colours differently too (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

/// The colour of what was not measured here.
const GREY: &str = "#999999";

/// The picture of all epochs, and of rates in MiB/s to compare them with.
pub(super) fn svg(title: &str, rows: &[Row], known: &[(&str, f64)]) -> String {
    let height = BARS_TOP + BAR_PITCH * (rows.len() + known.len() + 1) as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, (LEFT, 24.0), "start", 15, &format!("warmfs bench: {title}"));
    text(&mut svg, (LEFT, 46.0), "start", 12, "MiB/s over time, one epoch after the other");
    over_time(&mut svg, rows);
    bars(&mut svg, rows, known);
    svg.push_str("</svg>\n");
    svg
}

fn over_time(svg: &mut String, rows: &[Row]) {
    let total_s: f64 = rows.iter().map(seconds).sum::<f64>().max(1e-6);
    let lines: Vec<(f64, Vec<f64>)> = rows.iter().map(|row| row.figures.timeline(STEPS)).collect();
    let most = lines.iter().flat_map(|(_, rates)| rates).copied().fold(0.0, f64::max);
    let top_rate = round_up(most);
    let (top, bottom) = OVER_TIME;
    let x = |s: f64| LEFT + (RIGHT - LEFT) * (s / total_s).min(1.0);
    let y = |rate: f64| bottom - (bottom - top) * (rate / top_rate).min(1.0);
    for line in 0..=GRID_LINES as u32 {
        let rate = top_rate * f64::from(line) / GRID_LINES;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{RIGHT}\" y2=\"{0:.1}\" stroke=\"#dddddd\"/>",
            y(rate)
        );
        text(svg, (LEFT - 6.0, y(rate) + 4.0), "end", 12, &label(rate));
        let s = total_s * f64::from(line) / GRID_LINES;
        text(svg, (x(s), bottom + 18.0), "middle", 12, &format!("{} s", label(s)));
    }
    let mut from_s = 0.0;
    for (number, (row, (step, rates))) in rows.iter().zip(&lines).enumerate() {
        let until_s = from_s + seconds(row);
        let mut points = format!("{:.1},{bottom}", x(from_s));
        for (at, rate) in rates.iter().enumerate() {
            let begin = from_s + at as f64 * step;
            let end = (begin + step).min(until_s);
            let _ = write!(points, " {:.1},{y:.1} {:.1},{y:.1}", x(begin), x(end), y = y(*rate));
        }
        let _ = write!(points, " {:.1},{bottom}", x(until_s));
        let colour = COLOURS[number % COLOURS.len()];
        let _ = writeln!(
            svg,
            "<polygon points=\"{points}\" fill=\"{colour}\" fill-opacity=\"0.25\" stroke=\"{colour}\"/>"
        );
        from_s = until_s;
    }
}

fn bars(svg: &mut String, rows: &[Row], known: &[(&str, f64)]) {
    text(svg, (LEFT, BARS_TOP), "start", 12, "MiB/s of each epoch");
    let measured = rows.iter().enumerate().map(|(number, row)| {
        (row.name.as_str(), row.figures.mib_per_s(), COLOURS[number % COLOURS.len()])
    });
    let bars: Vec<(&str, f64, &str)> =
        measured.chain(known.iter().map(|(name, rate)| (*name, *rate, GREY))).collect();
    let most = bars.iter().map(|(_, rate, _)| *rate).fold(1e-9, f64::max);
    for (number, (name, rate, colour)) in bars.into_iter().enumerate() {
        let top = BARS_TOP + 12.0 + BAR_PITCH * number as f64;
        let length = ((BAR_RIGHT - BAR_LEFT) * rate / most).max(1.0);
        text(svg, (BAR_LEFT - 8.0, top + 14.0), "end", 12, name);
        let _ = writeln!(
            svg,
            "<rect x=\"{BAR_LEFT}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>"
        );
        let shown = format!("{rate:.0} MiB/s");
        text(svg, (BAR_LEFT + length + 6.0, top + 14.0), "start", 12, &shown);
    }
}

fn seconds(row: &Row) -> f64 {
    row.figures.elapsed.as_secs_f64()
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, size: u32, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escaped(text)
    );
}

/// A path may hold anything, and XML knows no control characters at all.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// The next 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-3).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.map(|factor| factor * power).into_iter().find(|r| *r >= value).unwrap_or(value)
}

fn label(value: f64) -> String {
    let digits = if value >= 10.0 || value == 0.0 { 0 } else { 2 };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measurement::tests::row;
    use super::*;

    #[test]
    fn every_epoch_is_in_the_picture_and_within_it() {
        let rows = [
            row("cold", 100, Duration::from_secs(5)),
            row("warm", 100, Duration::from_millis(80)),
            row("nothing", 0, Duration::ZERO),
        ];
        let svg = svg("<s3://a&b>\u{1b}", &rows, &[("field", 70.0)]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("&lt;s3://a&amp;b&gt;\u{fffd}"), "{svg}");
        assert_eq!((svg.matches("<polygon").count(), svg.matches("<rect").count()), (3, 5));
        for name in ["cold", "warm", "nothing", "field"] {
            assert!(svg.contains(&format!(">{name}</text>")), "{name}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        for x in svg.split(" x=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!((0.0..=WIDTH).contains(&x.parse::<f64>().unwrap()), "{x}");
        }
    }

    #[test]
    fn axes_end_at_round_numbers() {
        let rounded = [0.0, 0.7, 1.0, 1.2, 4.9, 70.0, 999.0].map(round_up);
        assert_eq!(rounded, [0.001, 1.0, 1.0, 2.0, 5.0, 100.0, 1000.0]);
    }
}
