//! Fragments of the kernel's configuration, and the check that their requests survived.

use std::collections::BTreeMap;

/// The request of one fragment line for one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KernelOptionValue {
    /// Exactly this line's value: `y`, a number, or a quoted string.
    Value(String),
    /// Not set.
    Off,
}

/// Every option that a fragment names, in order.
pub(super) fn wanted(fragment: &str) -> Vec<(String, KernelOptionValue)> {
    fragment.lines().filter_map(wanted_line).collect()
}

fn wanted_line(line: &str) -> Option<(String, KernelOptionValue)> {
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let name = rest.strip_suffix(" is not set")?;
        return Some((format!("CONFIG_{name}"), KernelOptionValue::Off));
    }
    let (name, value) = line.split_once('=')?;
    if !name.starts_with("CONFIG_") {
        return None;
    }
    let wanted = if value == "n" {
        KernelOptionValue::Off
    } else {
        KernelOptionValue::Value(value.to_owned())
    };
    Some((name.to_owned(), wanted))
}

/// One line for each option of `fragments` (name and content) that `config` does not have as
/// requested.
pub(super) fn lost(fragments: &[(String, String)], config: &str) -> Vec<String> {
    let has: BTreeMap<String, KernelOptionValue> = wanted(config).into_iter().collect();
    let mut lost = Vec::new();
    for (fragment, text) in fragments {
        for (name, requested) in wanted(text) {
            // Kconfig omits an option that cannot be set at all, which is the same as off.
            let got = has.get(&name).unwrap_or(&KernelOptionValue::Off);
            if *got != requested {
                lost.push(format!(
                    "  {name} ({fragment}): asked for {}, got {}",
                    value_text(&requested),
                    value_text(got)
                ));
            }
        }
    }
    lost
}

fn value_text(wanted: &KernelOptionValue) -> &str {
    match wanted {
        KernelOptionValue::Value(value) => value,
        KernelOptionValue::Off => "n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Vec<(String, String)> {
        vec![("base".to_owned(), text.to_owned())]
    }

    #[test]
    fn what_survived_is_not_mentioned() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=\"x=y\"\n# CONFIG_C is not set\nCONFIG_D=n\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"x=y\"\n# CONFIG_D is not set\nCONFIG_OTHER=y\n";
        assert!(lost(&one(fragment), config).is_empty());
    }

    #[test]
    fn each_loss_is_named_with_its_fragment() {
        let fragment = "CONFIG_A=y\nCONFIG_N=64\n# CONFIG_C is not set\n";
        let lines = lost(&one(fragment), "CONFIG_N=8\nCONFIG_C=y\n");
        assert_eq!(
            lines,
            [
                "  CONFIG_A (base): asked for y, got n",
                "  CONFIG_N (base): asked for 64, got 8",
                "  CONFIG_C (base): asked for n, got y",
            ]
        );
    }

    #[test]
    fn prose_is_no_option() {
        assert!(wanted("# CONFIG_A is a thing\n# is not set\nname=value\n\n").is_empty());
    }
}
