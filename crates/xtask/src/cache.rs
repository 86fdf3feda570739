//! Where heavy outputs live: outside every clone, shared by all of them, safe to delete.

use std::env;
use std::path::PathBuf;

/// The cache folder: `$ALKNET_CACHE`, else `$XDG_CACHE_HOME/alknet`, else `~/.cache/alknet`.
///
/// Returns an error text naming the variables when none of them is set.
pub fn folder() -> Result<PathBuf, String> {
    folder_from(|name| env::var_os(name).map(PathBuf::from))
}

fn folder_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, String> {
    let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    set("ALKNET_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|base| base.join("alknet")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/alknet")))
        .ok_or_else(|| {
            "no place for heavy outputs: set HOME, XDG_CACHE_HOME or ALKNET_CACHE".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<PathBuf, String> {
        folder_from(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_most_particular_variable_wins() {
        let all = [
            ("ALKNET_CACHE", "/a"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(with(&all), Ok(PathBuf::from("/a")));
        assert_eq!(with(&all[1..]), Ok(PathBuf::from("/x/alknet")));
        assert_eq!(with(&all[2..]), Ok(PathBuf::from("/h/.cache/alknet")));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(
            with(&[("ALKNET_CACHE", ""), ("HOME", "/h")]),
            Ok(PathBuf::from("/h/.cache/alknet"))
        );
        assert!(with(&[]).is_err_and(|text| text.contains("ALKNET_CACHE")));
    }
}
