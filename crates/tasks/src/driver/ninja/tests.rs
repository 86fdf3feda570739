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
fn each_part_of_a_library_is_recognised() {
    let parts = NinjaLinkInputs::parse("src/libx.so", FILE).expect("it is there");
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
    assert_eq!(NinjaLinkInputs::parse("src/liby.so", FILE), None);
    assert_eq!(NinjaLinkInputs::parse("src/libx.s", FILE), None);
    assert_eq!(
        NinjaLinkInputs::parse(
            "x",
            "build x: rule in\n\nbuild y: rule in\n LINK_ARGS = a.a"
        ),
        None
    );
}
