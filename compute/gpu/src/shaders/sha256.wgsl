// SHA-256 (FIPS 180-4) of many messages: one invocation for each.
struct Span { offset: u32, length: u32 } // bytes

@group(0) @binding(0) var<storage, read> messages: array<u32>; // bytes, four to a word, lowest first
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read_write> digests: array<u32>; // 32 bytes for each message

const K = array<u32, 64>(
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u,
);

fn rotate(x: u32, by: u32) -> u32 {
    return (x >> by) | (x << (32u - by));
}

// A byte of the padded message: its own, then 0x80, then nothing, then its length in bits.
fn padded(span: Span, blocks: u32, at: u32) -> u32 {
    if at < span.length {
        let byte = span.offset + at;
        return (messages[byte / 4u] >> (byte % 4u * 8u)) & 0xffu;
    }
    if at == span.length { return 0x80u; }
    let left = blocks * 64u - at;
    if left <= 4u { return ((span.length << 3u) >> ((left - 1u) * 8u)) & 0xffu; }
    if left == 5u { return span.length >> 29u; }
    return 0u;
}

fn word(span: Span, blocks: u32, at: u32) -> u32 {
    return (padded(span, blocks, at) << 24u) | (padded(span, blocks, at + 1u) << 16u)
        | (padded(span, blocks, at + 2u) << 8u) | padded(span, blocks, at + 3u);
}

// Digests have their highest byte first, words their lowest.
fn swapped(x: u32) -> u32 {
    return (x << 24u) | ((x & 0xff00u) << 8u) | ((x >> 8u) & 0xff00u) | (x >> 24u);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&spans) { return; }
    let span = spans[id.x];
    let blocks = (span.length + 8u) / 64u + 1u;
    var state = array<u32, 8>(
        0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
        0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u,
    );
    var constants = K;
    for (var block = 0u; block < blocks; block++) {
        var w: array<u32, 64>;
        for (var i = 0u; i < 16u; i++) { w[i] = word(span, blocks, block * 64u + i * 4u); }
        for (var i = 16u; i < 64u; i++) {
            let s0 = rotate(w[i - 15u], 7u) ^ rotate(w[i - 15u], 18u) ^ (w[i - 15u] >> 3u);
            let s1 = rotate(w[i - 2u], 17u) ^ rotate(w[i - 2u], 19u) ^ (w[i - 2u] >> 10u);
            w[i] = w[i - 16u] + s0 + w[i - 7u] + s1;
        }
        var a = state[0]; var b = state[1]; var c = state[2]; var d = state[3];
        var e = state[4]; var f = state[5]; var g = state[6]; var h = state[7];
        for (var i = 0u; i < 64u; i++) {
            let s1 = rotate(e, 6u) ^ rotate(e, 11u) ^ rotate(e, 25u);
            let t1 = h + s1 + ((e & f) ^ (~e & g)) + constants[i] + w[i];
            let s0 = rotate(a, 2u) ^ rotate(a, 13u) ^ rotate(a, 22u);
            let t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
        }
        state[0] += a; state[1] += b; state[2] += c; state[3] += d;
        state[4] += e; state[5] += f; state[6] += g; state[7] += h;
    }
    for (var i = 0u; i < 8u; i++) { digests[id.x * 8u + i] = swapped(state[i]); }
}
