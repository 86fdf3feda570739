//! What Mesa would link its shared library from, read out of the build file that meson wrote.

/// The parts of one target, as paths below the build folder or anywhere on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Objects of the target itself.
    pub(super) objects: Vec<String>,
    /// Archives of which everything is taken, wanted or not.
    pub(super) whole: Vec<String>,
    /// Archives of which what is called is taken.
    pub(super) archives: Vec<String>,
}

impl Parts {
    /// Finds `target` in the text of a `build.ninja`.
    ///
    /// Archives outside the build folder (the system's, LLVM's) are left out: they are chosen by the
    /// caller and not by what meson came across.
    pub(super) fn of(target: &str, file: &str) -> Option<Self> {
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
mod tests {
    use super::*;

    const FILE: &str = "\
build src/other.so: c_LINKER src/o.c.o
 LINK_ARGS = src/no.a

build src/libx.so: cpp_LINKER src/a.c.o src/b.c.o | /usr/lib/libm.a src/one.a src/two.a
 LINK_ARGS = -shared -Wl,--whole-archive -Wl,--start-group src/one.a -Wl,--no-whole-archive \
src/two.a src/three.a src/two.a -Wl,--end-group /usr/lib/libm.a -lz

build src/after.so: c_LINKER src/c.o
 LINK_ARGS = src/no.a
";

    #[test]
    fn the_parts_of_a_library_are_told_apart() {
        let parts = Parts::of("src/libx.so", FILE).expect("it is there");
        let [objects, whole, archives] = [
            vec!["src/a.c.o", "src/b.c.o"],
            vec!["src/one.a"],
            vec!["src/two.a", "src/three.a"],
        ];
        assert_eq!(parts.objects, objects);
        assert_eq!(parts.whole, whole);
        assert_eq!(parts.archives, archives);
        assert_eq!(parts.goals().count(), 5);
    }

    #[test]
    fn a_target_that_is_not_there_has_no_parts() {
        assert_eq!(Parts::of("src/liby.so", FILE), None);
        assert_eq!(Parts::of("src/libx.s", FILE), None);
        assert_eq!(
            Parts::of(
                "x",
                "build x: rule in\n\nbuild y: rule in\n LINK_ARGS = a.a"
            ),
            None
        );
    }
}
