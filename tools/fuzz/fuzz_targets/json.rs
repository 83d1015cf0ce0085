//! Any text as an index of shards, as each of a folder's configurations, and as the configuration of a sampler.
#![no_main]

use denoir::diffusers::config;
use denoir::diffusion::{Keys, Scheduler};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = denoir::weights::shards::parse(text);
    let _ = config::index(text);
    let _ = Keys::parse(text).and_then(|keys| keys.learned());
    if let Ok(config) = config::model(text)
        && let Ok(written) = config::text_of(&config.model, config.side.unwrap_or(8))
    {
        let again = config::model(&written).expect("what is written is read");
        assert_eq!(again.model, config.model, "{written}");
    }
    if let Ok(scheduler) = Scheduler::from_config(text) {
        let again = Scheduler::from_config(&scheduler.to_config()).expect("what is written is read");
        assert_eq!(again, scheduler);
        // Sampling with it may be refused, and must not fail otherwise.
        for steps in [1, 2, 7] {
            let _ = scheduler.plan(steps);
        }
    }
});
