//! Limits the nesting of a shader. The compilers, naga and the driver's, recurse for each level, and a stack overflow
//! ends the process; so the depth is counted before the text is parsed.

use wgpu::naga::{Block, Function, Handle, Module, Statement, TypeInner};

/// Nested brackets, and consecutive branches of one `if`.
const BRACKETS_MAX: usize = 64;

/// Operators in one expression.
const OPERATORS_MAX: usize = 1024;

/// Nested branches, loops and calls. llvmpipe fails at 80.
const BRANCHES_MAX: usize = 64;

/// Nested types.
const TYPES_MAX: usize = 32;

/// What nests too deep in a shader's text, if something does.
pub(super) fn of_text(wgsl: &str) -> Option<&'static str> {
    let mut counted = NestingCounter::default();
    let mut rest = wgsl.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after.first()) {
            (b'/', Some(b'/')) => line_comment(after),
            (b'/', Some(b'*')) => block_comment(&after[1..]),
            _ if byte.is_ascii_whitespace() => after,
            _ if is_word(*byte) => {
                let end = rest.iter().position(|byte| !is_word(*byte));
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                counted.word(word);
                after
            }
            _ => {
                counted.sign(*byte);
                after
            }
        };
        if counted.depth() > BRACKETS_MAX {
            return Some("too much nests in each other");
        }
        if counted.operators > OPERATORS_MAX {
            return Some("an expression has too many operators");
        }
    }
    None
}

#[derive(Debug, Default)]
struct NestingCounter {
    /// For each open bracket, the consecutive branches of an `if` in it.
    open: Vec<usize>,
    /// The same outside of all brackets.
    top_level: usize,
    /// The sum of all these branches.
    branches: usize,
    /// Whether the last token closed a brace.
    closed: bool,
    operators: usize,
}

impl NestingCounter {
    fn depth(&self) -> usize {
        self.open.len() + self.branches
    }

    fn word(&mut self, word: &[u8]) {
        if word == b"else" {
            *self.open.last_mut().unwrap_or(&mut self.top_level) += 1;
            self.branches += 1;
            self.closed = false;
        } else if std::mem::take(&mut self.closed) {
            self.end_branches();
        }
    }

    fn sign(&mut self, sign: u8) {
        if std::mem::take(&mut self.closed) {
            self.end_branches();
        }
        match sign {
            b'(' | b'[' | b'{' => self.open.push(0),
            b')' | b']' | b'}' => {
                let inside = self.open.pop().unwrap_or_default();
                self.branches = self.branches.saturating_sub(inside);
                self.closed = sign == b'}';
            }
            _ => {}
        }
        match sign {
            b';' | b'{' | b'}' | b',' => self.operators = 0,
            // These do not make an expression longer, so they neither count nor end it.
            b'(' | b')' | b'[' | b']' | b'@' | b':' => {}
            _ => self.operators += 1,
        }
    }

    /// Ends the chain of branches, because the token is no `else`.
    fn end_branches(&mut self) {
        let here = self.open.last_mut().unwrap_or(&mut self.top_level);
        self.branches = self.branches.saturating_sub(std::mem::take(here));
    }
}

fn is_word(byte: u8) -> bool {
    // WGSL allows letters of all of Unicode in names.
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn line_comment(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == b'\n');
    &text[end.unwrap_or(text.len())..]
}

/// Skips a block comment; block comments of WGSL nest.
fn block_comment(mut text: &[u8]) -> &[u8] {
    let mut open = 1;
    while open > 0 {
        (open, text) = match text {
            [b'*', b'/', rest @ ..] => (open - 1, rest),
            [b'/', b'*', rest @ ..] => (open + 1, rest),
            [_, rest @ ..] => (open, rest),
            // naga reports a comment without an end; here it only ends the count.
            [] => return text,
        };
    }
    text
}

/// What nests too deep in a valid shader, where names refer to other parts.
pub(super) fn of_module(module: &Module) -> Option<&'static str> {
    let mut types: Vec<usize> = Vec::with_capacity(module.types.len());
    // naga lists a type before the types that contain it.
    for (_, ty) in module.types.iter() {
        let depth = |inner: Handle<_>| types.get(inner.index()).copied().unwrap_or(0);
        let inside = match &ty.inner {
            TypeInner::Array { base, .. } => depth(*base),
            TypeInner::Struct { members, .. } => {
                let depths = members.iter().map(|member| depth(member.ty));
                depths.max().unwrap_or(0)
            }
            _ => 0,
        };
        types.push(inside + 1);
    }
    if types.iter().any(|depth| *depth > TYPES_MAX) {
        return Some("too many types lie in each other");
    }
    // naga lists a function before its callers.
    let mut functions = Vec::with_capacity(module.functions.len());
    for (_, function) in module.functions.iter() {
        functions.push(branches(&function.body, &functions));
    }
    let entries = module.entry_points.iter();
    let entries = entries.map(|entry| branches(&entry.function.body, &functions));
    let deepest = entries.chain(functions.iter().copied()).max();
    (deepest.unwrap_or(0) > BRANCHES_MAX).then_some("too many branches, loops and calls nest")
}

/// The nesting of a block's statements, including the functions that they call.
fn branches(block: &Block, functions: &[usize]) -> usize {
    let inside = |block: &Block| 1 + branches(block, functions);
    let depths = block.iter().map(|statement| match statement {
        Statement::Block(block) => branches(block, functions),
        Statement::If { accept, reject, .. } => inside(accept).max(inside(reject)),
        Statement::Switch { cases, .. } => {
            let depths = cases.iter().map(|case| inside(&case.body));
            depths.max().unwrap_or(0)
        }
        Statement::Loop {
            body, continuing, ..
        } => inside(body).max(inside(continuing)),
        Statement::Call { function, .. } => called(*function, functions),
        _ => 0,
    });
    depths.max().unwrap_or(0)
}

fn called(function: Handle<Function>, functions: &[usize]) -> usize {
    1 + functions.get(function.index()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use wgpu::naga::front::wgsl;

    use super::*;

    #[test]
    fn brackets_and_branches_are_counted_and_comments_are_not() {
        let nested = |count: usize| format!("{}{}", "(".repeat(count), ")".repeat(count));
        assert!(of_text(&nested(BRACKETS_MAX)).is_none());
        assert!(of_text(&nested(BRACKETS_MAX + 1)).is_some());
        assert!(
            of_text(&format!(
                "// {}\n/* /* {} */ ( */",
                nested(99),
                "{".repeat(99)
            ))
            .is_none()
        );
        let branches = |count: usize| format!("if a {{ }} {}", "else if b { } ".repeat(count));
        assert!(of_text(&branches(BRACKETS_MAX - 1)).is_none());
        assert!(of_text(&branches(BRACKETS_MAX + 1)).is_some());
        // One behind the other they do not add up, and neither do blocks that were left.
        assert!(of_text(&branches(40).repeat(40)).is_none());
        assert!(of_text(&format!("{{ {} }}", branches(40)).repeat(40)).is_none());
        assert!(of_text(&"{}".repeat(1000)).is_none());
        assert!(of_text(&"}".repeat(1000)).is_none());
    }

    #[test]
    fn operators_are_counted_for_each_expression() {
        assert!(of_text(&"-".repeat(OPERATORS_MAX)).is_none());
        assert!(of_text(&"-".repeat(OPERATORS_MAX + 1)).is_some());
        assert!(of_text(&"1u + ".repeat(OPERATORS_MAX + 1)).is_some());
        assert!(of_text(&"a = b + c;".repeat(OPERATORS_MAX)).is_none());
        assert!(of_text(&"-1, ".repeat(OPERATORS_MAX + 1)).is_none());
    }

    fn module(text: &str) -> Option<&'static str> {
        of_module(&wgsl::parse_str(text).expect("a shader"))
    }

    #[test]
    fn names_do_not_hide_depth() {
        let types = |count: usize| {
            let one = |i: usize| format!("struct A{} {{ a: A{i} }}\n", i + 1);
            let all: String = (0..count).map(one).collect();
            format!("struct A0 {{ a: u32 }}\n{all}")
        };
        assert!(module(&types(TYPES_MAX - 2)).is_none());
        assert!(module(&types(TYPES_MAX)).is_some());
        let calls = |count: usize| {
            let one = |i: usize| format!("fn f{}() {{ f{i}(); }}\n", i + 1);
            let all: String = (0..count).map(one).collect();
            format!("fn f0() {{ }}\n{all}")
        };
        assert!(module(&calls(BRANCHES_MAX)).is_none());
        assert!(module(&calls(BRANCHES_MAX + 1)).is_some());
    }
}
