//! Any text as an index of shards and as each of a folder's configurations.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = denoir::weights::shards::parse(text);
    let _ = denoir::diffusers::config::model(text);
    let _ = denoir::diffusers::config::index(text);
    let _ = denoir::diffusers::scheduler::process(text);
});
