//! Profiled steps as a trace: Chrome's trace-event format, which Perfetto (ui.perfetto.dev) opens.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::profile::Profile;
use crate::checkpoint::write_whole;
use crate::device::Device;
use crate::error::Result;
use crate::program::CompiledLaunch;

/// Tracks of the trace.
const HOST: u32 = 0;
const DEVICE: u32 = 1;

/// Writes a track of the host's steps and one of the device's launches. `launches`: of the program that was
/// profiled. A GPU's clock has another origin than the host's: its launches are drawn so that the last of a
/// step ends where the step does.
pub fn write_trace(
    path: &Path,
    profile: &Profile,
    launches: &[CompiledLaunch],
    device: &Device,
) -> Result<()> {
    let named = |what: &str, track: u32, name: &str| {
        let about = json!({"name": name});
        json!({"ph": "M", "name": what, "pid": 0, "tid": track, "args": about})
    };
    let mut events = vec![
        named("process_name", HOST, "denoir"),
        named("thread_name", HOST, "host"),
        named("thread_name", DEVICE, &profile.setting.device),
    ];
    for (number, step) in profile.timelines.iter().enumerate() {
        events.push(event(HOST, &format!("step {}", number + 1), step.begin, step.time, json!({})));
        let last = step.spans.last().map_or(Duration::ZERO, |last| last.start + last.time);
        let begin = match device {
            Device::Cpu(_) => step.launched,
            Device::Gpu(_) => step.begin + step.time.saturating_sub(last),
        };
        for (launch, span) in launches.iter().zip(&step.spans) {
            let about = json!({
                "label": launch.label,
                "flops": launch.cost.flops,
                "bytes": launch.cost.bytes,
                "dispatches": launch.dispatches,
            });
            events.push(event(DEVICE, launch.name, begin + span.start, span.time, about));
        }
    }
    let setting = &profile.setting;
    let about = json!({"workload": profile.workload, "device": setting.device, "version": setting.version});
    let whole = json!({"displayTimeUnit": "ms", "otherData": about, "traceEvents": events});
    write_whole(path, |file| file.write_all(whole.to_string().as_bytes()))
}

/// A bar on a track; times in microseconds.
fn event(track: u32, name: &str, start: Duration, time: Duration, about: Value) -> Value {
    let us = |time: Duration| time.as_nanos() as f64 * 1e-3;
    json!({"ph": "X", "cat": "denoir", "name": name, "pid": 0, "tid": track, "ts": us(start), "dur": us(time),
        "args": about})
}
