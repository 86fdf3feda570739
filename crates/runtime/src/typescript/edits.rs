//! Edits of a text that keep its line numbers.

/// Replacements of parts of one text, in any order. Replacements inside an erased part are dropped.
pub(super) struct Edits<'s> {
    source: &'s str,
    list: Vec<Edit>,
}

struct Edit {
    start: usize,
    end: usize,
    text: String,
}

impl<'s> Edits<'s> {
    pub(super) const fn new(source: &'s str) -> Self {
        Self {
            source,
            list: Vec::new(),
        }
    }

    pub(super) fn slice(&self, start: usize, end: usize) -> &'s str {
        self.source.get(start..end).unwrap_or_default()
    }

    /// Replaces a part by blanks, but keeps its line ends.
    pub(super) fn erase(&mut self, start: usize, end: usize) {
        let text = blank(self.slice(start, end));
        self.put(start, end, text);
    }

    /// Replaces a part by `text` and blanks after it.
    pub(super) fn erase_to(&mut self, start: usize, end: usize, text: &str) {
        let blanks = blank(self.slice(start, end));
        let rest = blanks
            .strip_prefix(' ')
            .map_or(blanks.as_str(), |rest| rest);
        self.put(start, end, format!("{text}{rest}"));
    }

    /// Replaces a part by a text of any length, followed by the line ends of the part.
    pub(super) fn replace(&mut self, start: usize, end: usize, text: &str) {
        let lines = ends(self.slice(start, end));
        self.put(start, end, format!("{text}{lines}"));
    }

    /// Removes a part with its line ends, which the caller inserts elsewhere.
    pub(super) fn replace_without_lines(&mut self, start: usize, end: usize) {
        self.put(start, end, String::new());
    }

    pub(super) fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.put(at, at, text.into());
    }

    /// The position before the blanks and marks (`?`, `!`, `:`) that precede `at`.
    pub(super) fn back_over_marks(&self, at: usize) -> usize {
        let marks = |c: char| c.is_whitespace() || matches!(c, '?' | '!' | ':');
        let trimmed = self.slice(0, at).trim_end_matches(marks);
        trimmed.len()
    }

    /// The first position from `at` that is neither a blank nor in a comment.
    pub(super) fn skip_blanks(&self, mut at: usize) -> usize {
        loop {
            let rest = &self.source[at.min(self.source.len())..];
            let trimmed = rest.trim_start();
            at += rest.len() - trimmed.len();
            at += match trimmed {
                line if line.starts_with("//") => line.find('\n').unwrap_or(line.len()),
                block if block.starts_with("/*") => {
                    block.find("*/").map_or(block.len(), |end| end + 2)
                }
                _ => return at,
            };
        }
    }

    pub(super) fn finish(mut self) -> String {
        // Of two replacements at one position, the longer erases the other; insertions stay before
        // it.
        self.list.sort_by_key(|edit| edit.start);
        let mut out = String::with_capacity(self.source.len() + 64);
        let mut at = 0;
        for edit in &self.list {
            if edit.start < at {
                continue;
            }
            out.push_str(&self.source[at..edit.start]);
            out.push_str(&edit.text);
            at = edit.end;
        }
        out.push_str(&self.source[at..]);
        out
    }

    fn put(&mut self, start: usize, end: usize, text: String) {
        self.list.push(Edit { start, end, text });
    }
}

const fn ends_line(c: char) -> bool {
    // These are the line terminators (ECMA-262, LineTerminator).
    matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}

fn blank(text: &str) -> String {
    text.chars()
        .map(|c| if ends_line(c) { c } else { ' ' })
        .collect()
}

pub(super) fn ends(text: &str) -> String {
    text.chars().filter(|c| ends_line(*c)).collect()
}
