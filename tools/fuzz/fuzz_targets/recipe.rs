//! Any text as a recipe, and as the value of a key of one.
#![no_main]

use denoir::recipe::params_of;
use denoir::recipe::{find, parse};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recipe) = parse(text, "a file")
        && recipe.validate().is_ok()
    {
        let again = parse(&recipe.to_toml(), "its own text").expect("what is written is read");
        assert_eq!(again, recipe);
        // Recording the model asks for no memory that depends on its size.
        params_of(&recipe);
    }
    if let Ok(mut recipe) = find("digits") {
        let _ = recipe.set(text);
        let _ = recipe.validate();
    }
});
