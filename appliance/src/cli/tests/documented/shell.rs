//! As much of a shell's language as the pages use: words, quotes, comments, redirections, pipes, `$(…)`.

use std::iter::Peekable;
use std::str::Chars;

/// Words before a command that are the shell's own, or start the command in another way.
const PREFIXES: [&str; 12] = [
    "!", "do", "elif", "else", "env", "exec", "if", "sudo", "then", "time", "until", "while",
];

/// What stands in a word in place of a command's output.
const OUTPUT: &str = "OUTPUT";

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShellCommand {
    /// Lines before the first word.
    pub(super) line: usize,
    /// Without quotes, redirections and assignments before the program. The output of a command stands there as
    /// [`OUTPUT`].
    pub(super) words: Vec<String>,
}

/// Each command of a script, those within others included.
pub(super) fn commands(script: &str) -> Vec<ShellCommand> {
    let mut lexer = ShellLexer {
        chars: script.chars().peekable(),
        line: 0,
        found: Vec::new(),
    };
    lexer.read(None);
    lexer.found.retain(|command| !command.words.is_empty());
    lexer.found
}

struct ShellLexer<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
    found: Vec<ShellCommand>,
}

impl ShellLexer<'_> {
    /// Reads commands up to the end, or up to `end`.
    fn read(&mut self, end: Option<char>) {
        let mut command = self.command();
        while let Some(c) = self.advance() {
            if Some(c) == end {
                break;
            }
            match c {
                ' ' | '\t' => {}
                '#' => self.skip_comment(),
                // A line that goes on in the next one.
                '\\' if self.chars.peek() == Some(&'\n') => {
                    self.advance();
                }
                '\n' | '|' | ';' | '&' | '(' | ')' | '{' | '}' => {
                    let next = self.command();
                    self.add_command(std::mem::replace(&mut command, next));
                }
                '<' | '>' if !self.is_placeholder(c) => self.skip_redirection(),
                _ => {
                    if command.words.is_empty() {
                        command.line = self.line;
                    }
                    let word = self.word(c, end);
                    if !self.is_number_of_redirection(&word) {
                        command.words.push(word);
                    }
                }
            }
        }
        self.add_command(command);
    }

    fn command(&self) -> ShellCommand {
        ShellCommand {
            line: self.line,
            words: Vec::new(),
        }
    }

    fn add_command(&mut self, mut command: ShellCommand) {
        let words = command.words.iter();
        let before = words.take_while(|word| is_before_command(word)).count();
        command.words.drain(..before);
        self.found.push(command);
    }

    fn advance(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    /// The rest of a word that begins with `first`.
    fn word(&mut self, first: char, end: Option<char>) -> String {
        let mut word = String::new();
        let mut c = first;
        loop {
            match c {
                '\'' => self.quoted(&mut word),
                '"' => self.double_quoted(&mut word),
                '$' if self.chars.peek() == Some(&'(') => self.substituted(&mut word),
                '<' if self.is_placeholder(c) => self.placeholder(&mut word),
                '\\' => word.extend(self.advance().filter(|c| *c != '\n')),
                c => word.push(c),
            }
            let ends = |c: char| " \t\n|;&()>".contains(c) || Some(c) == end;
            match self.chars.peek().copied() {
                None => return word,
                Some(next) if ends(next) => return word,
                Some(next) => c = next,
            }
            self.advance();
        }
    }

    fn quoted(&mut self, word: &mut String) {
        while let Some(c) = self.advance().filter(|c| *c != '\'') {
            word.push(c);
        }
    }

    fn double_quoted(&mut self, word: &mut String) {
        while let Some(c) = self.advance().filter(|c| *c != '"') {
            match c {
                '\\' => word.extend(self.advance()),
                '$' if self.chars.peek() == Some(&'(') => self.substituted(word),
                c => word.push(c),
            }
        }
    }

    fn substituted(&mut self, word: &mut String) {
        // The parenthesis.
        self.advance();
        self.read(Some(')'));
        word.push_str(OUTPUT);
    }

    /// The 2 of `2>FILE`.
    fn is_number_of_redirection(&mut self, word: &str) -> bool {
        let is_number = word.chars().all(|c| c.is_ascii_digit());
        is_number && matches!(self.chars.peek(), Some('<' | '>'))
    }

    /// `<64 hex>`, and no redirection: letters, digits and spaces up to the end of the placeholder.
    fn is_placeholder(&self, c: char) -> bool {
        let mut after = self.chars.clone();
        let end = after.find(|c| !c.is_alphanumeric() && ![' ', '-'].contains(c));
        c == '<' && end == Some('>')
    }

    fn placeholder(&mut self, word: &mut String) {
        word.push('<');
        while let Some(c) = self.advance() {
            word.push(c);
            if c == '>' {
                break;
            }
        }
    }

    fn skip_comment(&mut self) {
        while self.chars.peek().is_some_and(|c| *c != '\n') {
            self.advance();
        }
    }

    /// `<FILE`, `>FILE`, `>>FILE`: the file is no argument.
    fn skip_redirection(&mut self) {
        while self.chars.peek().is_some_and(|c| "<>& ".contains(*c)) {
            self.advance();
        }
        if let Some(first) = self.advance() {
            self.word(first, Some('\n'));
        }
    }
}

/// Whether the program comes behind this word.
fn is_before_command(word: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = |text: &str| !text.is_empty() && text.chars().all(is_letter);
    let assigned = word.split_once('=').map(|(name, _)| name);
    assigned.is_some_and(is_name) || PREFIXES.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(script: &str) -> Vec<(usize, String)> {
        let read = commands(script).into_iter();
        read.map(|command| (command.line, command.words.join("~")))
            .collect()
    }

    #[test]
    fn words_are_those_that_a_shell_makes() {
        for (script, words) in [
            ("a  b\t'c d' \"e \\\" f\" g\\ h", "a~b~c d~e \" f~g h"),
            ("a 'x\"y' \"it's\"pre'fix'", "a~x\"y~it'sprefix"),
            ("a # b", "a"),
            ("a b#c", "a~b#c"),
            ("a <in.txt >>out.txt 2>err.txt -", "a~-"),
            (
                "a ed25519:<64 hex>@HOST:1 <NODE>",
                "a~ed25519:<64 hex>@HOST:1~<NODE>",
            ),
            ("K=v L= a b=c", "a~b=c"),
            ("sudo exec a", "a"),
            ("a \\\n  b", "a~b"),
        ] {
            assert_eq!(read(script), [(0, words.to_owned())], "{script}");
        }
    }

    #[test]
    fn each_command_is_found_with_its_line() {
        let script =
            "\n# a comment\na | b && c; d\nx=$(e f) \"g $(h 'i') j\" k\nwhile l; do m; done\n(n)";
        let found = read(script);
        let expected = [
            (2, "a"),
            (2, "b"),
            (2, "c"),
            (2, "d"),
            (3, "e~f"),
            (3, "h~i"),
            (3, "g OUTPUT j~k"),
            (4, "l"),
            (4, "m"),
            (4, "done"),
            (5, "n"),
        ];
        let expected = expected.map(|(line, words)| (line, words.to_owned()));
        assert_eq!(found, expected);
    }
}
