//! What Mesa would link its shared library from, read out of the build file that meson wrote.

/// The parts of one target, as paths below the build folder or anywhere on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NinjaLinkInputs {
    /// Objects of the target itself.
    pub(super) objects: Vec<String>,
    /// Archives of which everything is taken, wanted or not.
    pub(super) whole: Vec<String>,
    /// Archives of which what is called is taken.
    pub(super) archives: Vec<String>,
}

impl NinjaLinkInputs {
    /// Finds `target` in the text of a `build.ninja`.
    ///
    /// Archives outside the build folder (the system's, LLVM's) are left out: they are chosen by the
    /// caller and not by what meson came across.
    pub(super) fn parse(target: &str, file: &str) -> Option<Self> {
        let head = format!("build {target}: ");
        let mut lines = file.lines().skip_while(|line| !line.starts_with(&head));
        let inputs = lines.next()?.strip_prefix(&head)?;
        let inputs = inputs.split(" | ").next().unwrap_or(inputs);
        let mut parts = Self {
            // The first word is the rule.
            objects: inputs.split(' ').skip(1).map(str::to_owned).collect(),
            ..Self::default()
        };
        let mut variables = lines.take_while(|line| line.starts_with(' '));
        let arguments = variables.find_map(|line| line.strip_prefix(" LINK_ARGS = "))?;
        parts.take_archives(arguments);
        Some(parts)
    }

    fn take_archives(&mut self, arguments: &str) {
        let mut whole = false;
        for word in arguments.split(' ') {
            match word {
                "-Wl,--whole-archive" => whole = true,
                "-Wl,--no-whole-archive" => whole = false,
                _ if word.starts_with(['-', '/']) || !word.ends_with(".a") => {}
                _ => {
                    let list = if whole {
                        &mut self.whole
                    } else {
                        &mut self.archives
                    };
                    if !list.iter().any(|known| known == word) {
                        list.push(word.to_owned());
                    }
                }
            }
        }
    }

    /// Everything that has to be built.
    pub(super) fn goals(&self) -> impl Iterator<Item = &String> {
        self.objects.iter().chain(&self.whole).chain(&self.archives)
    }
}

#[cfg(test)]
mod tests;
