//! The recipes of `built_in.toml`, each with the source of its numbers.

use super::Recipe;

/// The built-in recipes; the first is the default.
pub(crate) fn built_in() -> Vec<Recipe> {
    let table: toml::Table = toml::from_str(include_str!("built_in.toml"))
        .unwrap_or_else(|e| unreachable!("the recipes in the program: {e}"));
    let recipe = |(name, value): (String, toml::Value)| {
        let recipe = value.try_into().unwrap_or_else(|e| unreachable!("the recipe {name}: {e}"));
        Recipe { name, ..recipe }
    };
    table.into_iter().map(recipe).collect()
}

#[cfg(test)]
mod tests {
    use super::built_in;
    use crate::recipe::parse;

    #[test]
    fn every_recipe_is_valid_and_survives_toml() {
        for recipe in built_in() {
            recipe.validate().unwrap();
            assert_eq!(parse(&recipe.to_toml(), "test").unwrap(), recipe);
        }
    }
}
