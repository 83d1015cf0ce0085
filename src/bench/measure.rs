//! The clock, its readings, and the setting that they hold for.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::device::Device;
use crate::error::Result;
use crate::philox::{Stream, fill_normal};

/// Standard normal numbers that depend on `salt` alone.
pub fn numbers(salt: u32, n: usize) -> Vec<f32> {
    let mut all = vec![0.0; n];
    fill_normal(&mut all, 2026, Stream::Generate as u32, salt, 0, 0);
    all
}

/// Whether an error is below a tolerance; NaN is not.
pub fn below(err: f64, tolerance: f64) -> bool {
    err < tolerance
}

/// Readings of one measurement in milliseconds; part of JSON objects.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    /// Half of the readings lie between these two.
    pub quartiles_ms: [f64; 2],
    /// Number of readings.
    pub n: usize,
}

impl Times {
    /// # Panics
    /// When there are no readings.
    #[track_caller]
    pub fn new(mut readings: Vec<Duration>) -> Times {
        assert!(!readings.is_empty(), "times: nothing was measured");
        readings.sort_unstable();
        let n = readings.len();
        let [min_ms, low, median_ms, high, max_ms] =
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|fraction| quantile(&readings, fraction));
        Times { median_ms, min_ms, max_ms, quartiles_ms: [low, high], n }
    }

    pub fn median(&self) -> f64 {
        self.median_ms
    }
}

/// The value in milliseconds below which a fraction of the readings lies, interpolated between two of them.
fn quantile(sorted: &[Duration], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let ms = |i: usize| sorted[i].as_secs_f64() * 1e3;
    let (low, high) = (ms(at.floor() as usize), ms(at.ceil() as usize));
    low + (high - low) * at.fract()
}

/// Runs `work` `warmup` times and then `steps` times, with the clock around each. `progress` is called after
/// each run.
pub(crate) fn time(
    warmup: usize,
    steps: usize,
    progress: &mut dyn FnMut(),
    mut work: impl FnMut() -> Result<()>,
) -> Result<Times> {
    let mut readings = Vec::with_capacity(steps);
    for number in 0..warmup + steps {
        let began = Instant::now();
        work()?;
        let took = began.elapsed();
        if number >= warmup {
            readings.push(took);
        }
        progress();
    }
    Ok(Times::new(readings))
}

/// Where and when something was measured, and of what version; part of every JSON object.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Setting {
    pub device: String,
    /// The driver of a GPU, the processor of the CPU device.
    pub driver: String,
    /// Threads of the CPU device; `None` on a GPU.
    pub threads: Option<usize>,
    pub version: &'static str,
    /// UTC, as `2026-11-24T07:30:00Z`.
    pub date: String,
}

impl Setting {
    /// That of a measurement that ends now.
    pub fn of(device: &Device) -> Setting {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Setting {
            device: device.describe(),
            driver: device.driver(),
            threads: if let Device::Cpu(cpu) = device { Some(cpu.threads()) } else { None },
            version: env!("CARGO_PKG_VERSION"),
            date: date(seconds),
        }
    }
}

/// Seconds since 1970 as a date in ISO 8601 (Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`).
fn date(seconds: u64) -> String {
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    let shifted = days + 719_468; // since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153; // since March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hours, minutes) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_readings() {
        let times = Times::new([4, 1, 3, 2].map(Duration::from_millis).to_vec());
        let near = |ms: f64, wanted: f64| (ms - wanted).abs() < 1e-9;
        assert!(near(times.min_ms, 1.0) && near(times.median_ms, 2.5) && near(times.max_ms, 4.0));
        assert!(near(times.quartiles_ms[0], 1.75) && near(times.quartiles_ms[1], 3.25));
        assert_eq!(quantile(&[Duration::from_millis(7)], 0.3), 7.0);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @SECONDS +%FT%TZ
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_795_478_399), "2026-11-23T23:59:59Z");
        assert_eq!(date(1_798_761_600), "2027-01-01T00:00:00Z");
    }
}
