use super::*;

#[test]
fn unique_names_are_recognised() {
    let symbols = "0000000000000000 T vk_icd\n0000000000000010 u _ZN1AIiE1vE\n\
                   0000000000000000 d u_format\n";
    assert_eq!(unique_in(symbols), "_ZN1AIiE1vE\n");
}
