//! Names picked by a pattern.

/// Whether a name matches the pattern: `*` stands for any characters, `?` for one character, and
/// each other character for itself.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The position of the last star, and the position in the name up to which the star matches.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                // The search goes back to the last star only, so a pattern cannot make it take
                // exponential time.
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    // The name has ended: what is left of the pattern matches only if it can match nothing.
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_they_say() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "a.b"),
            ("a*c", "abbc"),
            ("a*c", "ac"),
            ("*.weight", "model.0.weight"),
            ("model.?.bias", "model.ä.bias"),
            ("*a*b", "xaxbab"),
            ("", ""),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abb"),
            ("*.weight", "weight"),
            ("A", "a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        // Many stars take no more than the product of the two lengths.
        let pattern = "*a".repeat(500);
        assert!(!fits(&pattern, &"ab".repeat(400)));
    }
}
