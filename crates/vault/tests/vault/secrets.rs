//! Secrets are not copied, shown or written by accident: checked when this file is compiled.

use alknet_vault::slots::{OpenAlkv, SeedKey};
use alknet_vault::{Ed25519Signer, Entropy, P256Signer, SecretArr, SecretBytes, SecretStr, Vault};

/// Does not compile if a type has the trait: then two implementations could be meant.
macro_rules! never {
    ($trait:path: $($type:ty),+) => {
        $(const _: fn() = || {
            trait Either<Which> {
                fn meant() {}
            }
            struct HasIt;
            impl<T: ?Sized> Either<()> for T {}
            impl<T: ?Sized + $trait> Either<HasIt> for T {}
            let _ = <$type as Either<_>>::meant;
        };)+
    };
}

never!(Clone: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, OpenAlkv);
never!(serde::Serialize: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, OpenAlkv);
never!(serde::Serialize: Vault, Ed25519Signer, P256Signer);
never!(std::fmt::Display: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, Vault);

#[test]
fn what_is_shown_of_a_secret_says_nothing() {
    let words = Entropy::from_bytes(&[0x41; 16]).expect("16 bytes");
    let shown = format!(
        "{words:?} {:?} {:?}",
        words.phrase(),
        SecretArr::copy_of(&[0x41; 4])
    );
    assert_eq!(shown, "Entropy(..) SecretStr(..) SecretArr(..)");
}
