// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.4).

// The upper word of a * b, from 16-bit halves.
fn high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let cross = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (mid >> 16u) + (cross >> 16u);
}

// The number in [0, 1) of the first random word: 24 bits, exact.
fn uniform_number(seed: vec2u, counter: vec4u) -> f32 {
    const M = vec2u(0xd2511f53u, 0xcd9e8d57u);
    var key = seed;
    var c = counter;
    for (var round = 0u; round < 10u; round++) {
        c = vec4u(high(M.y, c.z) ^ c.y ^ key.x, M.y * c.z, high(M.x, c.x) ^ c.w ^ key.y, M.x * c.x);
        key += vec2u(0x9e3779b9u, 0xbb67ae85u);
    }
    return f32(c.x >> 8u) * 5.9604644775390625e-8;
}
