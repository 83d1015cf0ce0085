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

/// Readings of one measurement, sorted.
#[derive(Clone, Debug)]
pub struct Times(Vec<Duration>);

impl Times {
    /// # Panics
    /// When there are none.
    #[track_caller]
    pub fn new(mut readings: Vec<Duration>) -> Times {
        assert!(!readings.is_empty(), "times: nothing was measured");
        readings.sort_unstable();
        Times(readings)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value below which a share of the readings lies, in milliseconds, between two of them in
    /// proportion: 0.5 is the median.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = share.clamp(0.0, 1.0) * (self.0.len() - 1) as f64;
        let ms = |i: usize| self.0[i].as_secs_f64() * 1e3;
        let low = at.floor() as usize;
        let high = (low + 1).min(self.0.len() - 1);
        ms(low) + (ms(high) - ms(low)) * (at - low as f64)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Runs `work` `warmup` times and then `steps` times, with the clock around each. `progress` is called after
/// each run.
///
/// # Errors
/// Those of `work`.
pub fn time(
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
            threads: match device {
                Device::Cpu(cpu) => Some(cpu.threads()),
                Device::Gpu(_) => None,
            },
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
        let near = |share: f64, wanted: f64| (times.quantile(share) - wanted).abs() < 1e-9;
        assert!(near(0.0, 1.0) && near(0.5, 2.5) && near(0.25, 1.75) && near(1.0, 4.0));
        assert_eq!(Times::new(vec![Duration::from_millis(7)]).quantile(0.3), 7.0);
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
