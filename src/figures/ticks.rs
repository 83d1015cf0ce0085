//! Axes: the range that shows all values, round numbers on it, and how these are written.

/// How an axis is divided.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    pub log: bool,
}

impl Axis {
    /// Whether a value has a place on the axis.
    pub fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }
}

/// An axis of a range, with its ticks. Places go from 0 to 1 along it.
#[derive(Clone, Debug)]
pub struct Ticks {
    axis: Axis,
    /// Values at 0 and 1; logarithms to base 10 on a logarithmic axis.
    low: f64,
    high: f64,
    /// Place and label of each tick.
    pub marks: Vec<(f64, String)>,
    /// Places of fainter lines between them.
    pub minor: Vec<f64>,
}

impl Ticks {
    /// The axis that shows `values`, with as many ticks as `fit`, which is asked with their labels.
    pub fn new(axis: &Axis, values: impl Iterator<Item = f64>, fit: impl Fn(&[String]) -> bool) -> Ticks {
        let scale = |v: f64| if axis.log { v.log10() } else { v };
        let bounds = values
            .map(scale)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = padded(bounds, axis.log);
        let mut ticks = Ticks { axis: axis.clone(), low, high, marks: Vec::new(), minor: Vec::new() };
        // From many ticks to few, until the labels fit.
        for count in (1..=12).rev() {
            let (values, minor) =
                if axis.log { log_ticks(low, high, count) } else { (steps(low, high, count), Vec::new()) };
            let labels = labels(&values);
            if fit(&labels) || count == 1 {
                let place = |v: f64| (scale(v) - low) / (high - low);
                ticks.marks = values.iter().map(|&v| place(v)).zip(labels).collect();
                ticks.minor = minor.into_iter().map(place).collect();
                break;
            }
        }
        ticks
    }

    /// The place of a value, if it has one; from 0 to 1 within the range.
    pub fn place(&self, value: f64) -> Option<f64> {
        let scaled = if self.axis.log { value.log10() } else { value };
        self.axis.shows(value).then(|| (scaled - self.low) / (self.high - self.low))
    }
}

/// A range with a little room at both ends; of one value, a range around it; of none, from 0 to 1.
fn padded((low, high): (f64, f64), log: bool) -> (f64, f64) {
    if low > high {
        return (0.0, 1.0);
    }
    // Differences that are rounding errors of f32 are none.
    let least = low.abs().max(high.abs()) * 1e-7;
    if high - low <= least.max(f64::MIN_POSITIVE) {
        let room = match (log, low.abs()) {
            (true, _) => 0.5,
            (false, value) if value > 0.0 => value * 0.1,
            _ => 1.0,
        };
        return (low - room, high + room);
    }
    let room = (high - low) * 0.03;
    (low - room, high + room)
}

/// Multiples of 1, 2 or 5 times a power of ten within a range, some `count` of them and at most twice that.
fn steps(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.999).unwrap_or(10.0);
    let step = factor * power;
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    // Multiples of a step below 1 are divided by a whole number, as that is exact: 3 * 0.1 is not 0.3.
    let value = |i: f64| if step < 1.0 { i / (1.0 / step).round() } else { i * step };
    (0..=(last - first).max(0.0) as usize).map(|i| value(first + i as f64) + 0.0).collect()
}

/// Powers of ten, or for short ranges also their multiples by 2 and 5, or else any round numbers; and the
/// other multiples, as lines without a label. The range is one of logarithms.
fn log_ticks(low: f64, high: f64, count: usize) -> (Vec<f64>, Vec<f64>) {
    let within = |v: &f64| v.log10() > low - 1e-9 && v.log10() < high + 1e-9;
    let decades = low.floor() as i32..=high.ceil() as i32;
    let times = |factors: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|d| factors.iter().map(move |f| f * 10f64.powi(d)));
        all.filter(within).collect()
    };
    let minor = if high - low < 8.0 { times(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]) } else { Vec::new() };
    let powers = times(&[1.0]);
    let fine = times(&[1.0, 2.0, 5.0]);
    if fine.len() < 3 {
        let values = steps(10f64.powf(low), 10f64.powf(high), count.min(5));
        return (values.into_iter().filter(|v| *v > 0.0).collect(), Vec::new());
    }
    if fine.len() <= count && powers.len() < 4 {
        return (fine, minor);
    }
    let every = powers.len().div_ceil(count);
    // Multiples of the stride, so that 1 is among them where it can be.
    let kept = powers.into_iter().filter(|v| v.log10().round() as i32 % every as i32 == 0);
    (kept.collect(), minor)
}

/// Numbers as they are written along one axis: plain where that is short, otherwise with powers of ten.
fn labels(values: &[f64]) -> Vec<String> {
    let sizes = || values.iter().map(|v| v.abs()).filter(|v| *v > 0.0);
    let (least, largest) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    let plain = largest < 1e6 && least >= 0.99e-3;
    let write = |v: &f64| if plain || *v == 0.0 { decimal(*v) } else { scientific(*v) };
    values.iter().map(write).collect()
}

/// A number without trailing zeros, to nine digits after the point.
fn decimal(v: f64) -> String {
    let text = format!("{v:.9}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.replace('-', "−") }
}

/// A number as 5×10⁻³, or 10⁻³ where the first factor is 1.
fn scientific(v: f64) -> String {
    let text = format!("{v:.9e}");
    let (factor, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: String = power.chars().map(superscript).collect();
    match decimal(factor.parse().unwrap_or(v)).as_str() {
        "1" => format!("10{power}"),
        "−1" => format!("−10{power}"),
        factor => format!("{factor}×10{power}"),
    }
}

fn superscript(letter: char) -> char {
    let digit = letter.to_digit(10).and_then(|digit| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(digit as usize));
    digit.unwrap_or('⁻')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(values: &[f64], log: bool, count: usize) -> Vec<String> {
        let axis = Axis { log };
        let ticks = Ticks::new(&axis, values.iter().copied(), |labels| labels.len() <= count);
        assert!(ticks.marks.iter().all(|(at, _)| (-1e-6..1.0 + 1e-6).contains(at)), "{ticks:?}");
        assert!(ticks.marks.is_sorted_by(|a, b| a.0 < b.0), "{ticks:?}");
        ticks.marks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_of_known_ranges() {
        assert_eq!(ticks(&[0.0, 999.0], false, 6), ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!(ticks(&[0.0, 1.0], false, 7), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(ticks(&[-0.31, 0.3], false, 8), ["−0.3", "−0.2", "−0.1", "0", "0.1", "0.2", "0.3"]);
        assert_eq!(ticks(&[1e-4, 0.02], false, 5), ["0", "0.005", "0.01", "0.015", "0.02"]);
        assert_eq!(ticks(&[0.0, 4e6], false, 5), ["0", "10⁶", "2×10⁶", "3×10⁶", "4×10⁶"]);
        assert_eq!(ticks(&[-1.5e-5, 1e-5], false, 4), ["−10⁻⁵", "0", "10⁻⁵"]);
        assert_eq!(ticks(&[0.0, 200_000.0], false, 5), ["0", "50000", "100000", "150000", "200000"]);
    }

    #[test]
    fn a_logarithmic_axis_has_decades() {
        assert_eq!(ticks(&[1e-4, 1.0], true, 6), ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]);
        assert_eq!(ticks(&[1e-3, 10.0], true, 6), ["0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(ticks(&[1e-9, 1e9], true, 5), ["10⁻⁸", "10⁻⁴", "10⁰", "10⁴", "10⁸"]);
        assert_eq!(ticks(&[0.03, 1.0], true, 9), ["0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(ticks(&[1.0, 3.0], true, 5), ["1", "1.5", "2", "2.5", "3"], "less than a decade");
        let axis = Axis { log: true };
        let ticks = Ticks::new(&axis, [1.0, 100.0].into_iter(), |labels| labels.len() <= 4);
        assert_eq!((ticks.marks.len(), ticks.minor.len()), (3, 17), "lines at 0.9, 2 to 9, and 20 to 90");
        let places = [1.0, 10.0, 100.0, 0.0, -1.0, f64::NAN].map(|v| ticks.place(v));
        assert!((places[1].unwrap() - 0.5).abs() < 1e-12 && places[3..].iter().all(Option::is_none));
        assert!((places[0].unwrap() - 0.03 / 1.06).abs() < 1e-12);
    }

    #[test]
    fn one_value_or_none_has_an_axis_too() {
        assert_eq!(ticks(&[], false, 3), ["0", "0.5", "1"]);
        assert_eq!(ticks(&[5.0, 5.0], false, 5), ["4.6", "4.8", "5", "5.2", "5.4"]);
        assert_eq!(ticks(&[0.0], false, 3), ["−1", "0", "1"]);
        assert_eq!(ticks(&[-7.0], false, 3), ["−7.5", "−7", "−6.5"]);
        assert!(!ticks(&[3e-5], true, 3).is_empty() && !ticks(&[0.1, 0.1 + 1e-12], false, 9).is_empty());
        assert_eq!(ticks(&[0.0, 1.0], false, 0), ["0"], "the fewest there are, where none fit");
    }

    #[test]
    fn numbers_are_written_short() {
        assert_eq!([0.1 + 0.2, 1e5, -0.0, -2.50].map(decimal), ["0.3", "100000", "0", "−2.5"]);
        assert_eq!([1e-3, 2.5e7, -1e12].map(scientific), ["10⁻³", "2.5×10⁷", "−10¹²"]);
    }
}
