// a = sums of chains of multiply-adds in f32, 4096 in each invocation.
// Grid: any number of workgroups. Bound by arithmetic: what the shares of kernels are taken of.

const ROUNDS = 64u;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> a: vec4f;

fn four(v: vec4f, m: vec4f) -> vec4f {
    return fma(fma(fma(fma(v, m, m), m, m), m, m), m, m);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let m = x[0];
    // Sixteen chains that do not wait for each other.
    var p = vec4f(f32(id.x));
    var q = p + 1.0;
    var r = p + 2.0;
    var s = p + 3.0;
    for (var round = 0u; round < ROUNDS; round++) {
        p = four(p, m);
        q = four(q, m);
        r = four(r, m);
        s = four(s, m);
    }
    let sum = p + q + r + s;
    // Hardly ever written: what matters is that no compiler knows it.
    if all(sum == vec4f(0.123456)) {
        a = sum;
    }
}
