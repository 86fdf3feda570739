//! Numbers of the TPM 2.0 library specification, part 2, as far as this crate uses them.

pub(crate) mod cc {
    //! Commands, section 6.5.2.
    pub(crate) const NV_UNDEFINE_SPACE: u32 = 0x122;
    pub(crate) const NV_DEFINE_SPACE: u32 = 0x12a;
    pub(crate) const CREATE_PRIMARY: u32 = 0x131;
    pub(crate) const NV_INCREMENT: u32 = 0x134;
    pub(crate) const NV_READ: u32 = 0x14e;
    pub(crate) const CREATE: u32 = 0x153;
    pub(crate) const LOAD: u32 = 0x157;
    pub(crate) const UNSEAL: u32 = 0x15e;
    pub(crate) const FLUSH_CONTEXT: u32 = 0x165;
    pub(crate) const NV_READ_PUBLIC: u32 = 0x169;
    pub(crate) const POLICY_AUTH_VALUE: u32 = 0x16b;
    pub(crate) const READ_PUBLIC: u32 = 0x173;
    pub(crate) const START_AUTH_SESSION: u32 = 0x176;
    pub(crate) const GET_CAPABILITY: u32 = 0x17a;
    pub(crate) const PCR_READ: u32 = 0x17e;
    pub(crate) const POLICY_PCR: u32 = 0x17f;
    pub(crate) const PCR_EXTEND: u32 = 0x182;

    /// The name for a message to people.
    pub(crate) fn name(code: u32) -> &'static str {
        match code {
            NV_UNDEFINE_SPACE => "TPM2_NV_UndefineSpace",
            NV_DEFINE_SPACE => "TPM2_NV_DefineSpace",
            CREATE_PRIMARY => "TPM2_CreatePrimary",
            NV_INCREMENT => "TPM2_NV_Increment",
            NV_READ => "TPM2_NV_Read",
            CREATE => "TPM2_Create",
            LOAD => "TPM2_Load",
            UNSEAL => "TPM2_Unseal",
            FLUSH_CONTEXT => "TPM2_FlushContext",
            NV_READ_PUBLIC => "TPM2_NV_ReadPublic",
            POLICY_AUTH_VALUE => "TPM2_PolicyAuthValue",
            READ_PUBLIC => "TPM2_ReadPublic",
            START_AUTH_SESSION => "TPM2_StartAuthSession",
            GET_CAPABILITY => "TPM2_GetCapability",
            PCR_READ => "TPM2_PCR_Read",
            POLICY_PCR => "TPM2_PolicyPCR",
            PCR_EXTEND => "TPM2_PCR_Extend",
            _ => "a command",
        }
    }
}

pub(crate) mod rc {
    //! Response codes, section 6.6.
    pub(crate) const SUCCESS: u32 = 0;
    pub(crate) const PCR_CHANGED: u32 = 0x128;
    pub(crate) const COMMAND_CODE: u32 = 0x143;
    pub(crate) const NV_DEFINED: u32 = 0x14c;
    pub(crate) const LOCKOUT: u32 = 0x921;
    /// Codes of format 1, without the number of the parameter, handle or session that they are
    /// about.
    pub(crate) const VALUE: u32 = 0x084;
    pub(crate) const HANDLE: u32 = 0x08b;
    pub(crate) const AUTH_FAIL: u32 = 0x08e;
    pub(crate) const POLICY_FAIL: u32 = 0x09d;
    pub(crate) const INTEGRITY: u32 = 0x09f;
    pub(crate) const BAD_AUTH: u32 = 0x0a2;
    pub(crate) const CURVE: u32 = 0x0a6;

    const FORMAT_1: u32 = 0x080;
    const YIELDED: u32 = 0x908;
    const TESTING: u32 = 0x90a;
    const NV_RATE: u32 = 0x920;
    const RETRY: u32 = 0x922;

    /// The error itself. Programs between us and the TPM mark their errors in the upper half.
    pub(crate) fn base(code: u32) -> u32 {
        let code = code & 0xffff;
        if code & FORMAT_1 == 0 {
            code
        } else {
            // Part 2, 6.6.2: bits 8 to 11 and bit 6 of format 1 say which parameter, handle or
            // session it is about.
            code & 0x0bf
        }
    }

    /// Whether the same command may be sent again.
    pub(crate) fn is_busy(code: u32) -> bool {
        matches!(code & 0xffff, YIELDED | TESTING | NV_RATE | RETRY)
    }
}

pub(crate) mod alg {
    //! Algorithms, section 6.3.
    pub(crate) const AES: u16 = 0x0006;
    pub(crate) const KEYED_HASH: u16 = 0x0008;
    pub(crate) const SHA256: u16 = 0x000b;
    pub(crate) const NULL: u16 = 0x0010;
    pub(crate) const ECC: u16 = 0x0023;
    pub(crate) const CFB: u16 = 0x0043;
    /// A curve, section 6.4.
    pub(crate) const NIST_P256: u16 = 0x0003;
}

pub(crate) mod tag {
    //! Tags of messages, section 6.9.
    pub(crate) const NO_SESSIONS: u16 = 0x8001;
    pub(crate) const SESSIONS: u16 = 0x8002;
}

pub(crate) mod handle {
    //! Handles, section 7.
    pub(crate) const OWNER: u32 = 0x4000_0001;
    pub(crate) const NULL: u32 = 0x4000_0007;
    /// The authorisation by a password, which is empty here.
    pub(crate) const PASSWORD: u32 = 0x4000_0009;
    /// The handle at which other programs keep the storage key, if any does (TCG's registry of
    /// reserved handles).
    pub(crate) const STORAGE_ROOT: u32 = 0x8100_0001;
    /// Our handle, in the range that the registry leaves to owners.
    pub(crate) const COUNTER: u32 = 0x0180_414c;
}

pub(crate) mod object {
    //! Attributes of objects, section 8.3.
    pub(crate) const FIXED_TPM: u32 = 1 << 1;
    pub(crate) const FIXED_PARENT: u32 = 1 << 4;
    pub(crate) const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub(crate) const USER_WITH_AUTH: u32 = 1 << 6;
    pub(crate) const ADMIN_WITH_POLICY: u32 = 1 << 7;
    pub(crate) const NO_DA: u32 = 1 << 10;
    pub(crate) const RESTRICTED: u32 = 1 << 16;
    pub(crate) const DECRYPT: u32 = 1 << 17;
}

pub(crate) mod nv {
    //! Attributes of NV indices, section 13.4.
    pub(crate) const AUTH_WRITE: u32 = 1 << 2;
    pub(crate) const COUNTER: u32 = 1 << 4;
    pub(crate) const AUTH_READ: u32 = 1 << 18;
    pub(crate) const NO_DA: u32 = 1 << 25;
    pub(crate) const WRITTEN: u32 = 1 << 29;
}

pub(crate) mod property {
    //! Capabilities, sections 6.12 and 6.13.
    pub(crate) const TPM_PROPERTIES: u32 = 6;
    pub(crate) const PERMANENT: u32 = 0x200;
    pub(crate) const LOCKOUT_COUNTER: u32 = 0x20e;
    pub(crate) const MAX_AUTH_FAIL: u32 = 0x20f;
    pub(crate) const LOCKOUT_INTERVAL: u32 = 0x210;
    pub(crate) const LOCKOUT_RECOVERY: u32 = 0x211;
    /// A bit in `PERMANENT`.
    pub(crate) const IN_LOCKOUT: u32 = 1 << 9;
}
