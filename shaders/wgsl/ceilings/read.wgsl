// a = exclusive or of all of x, PASSES times over.
// Grid: any number of workgroups, which share x evenly. Bound by reading x: what the shares of kernels are taken of.

@id(0) override PASSES: u32 = 1u;

@group(0) @binding(0) var<storage, read> x: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> a: vec4u;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let threads = groups.x * 256u;
    let n = arrayLength(&x);
    var sum = vec4u(0u);
    for (var pass_ = 0u; pass_ < PASSES; pass_++) {
        // Every pass another part, so that no invocation reads what it has just read.
        var i = (id.x + pass_ * 8448u) % threads;
        // Four loads at a time are under way.
        for (; i + 3u * threads < n; i += 4u * threads) {
            sum ^= x[i] ^ x[i + threads] ^ x[i + 2u * threads] ^ x[i + 3u * threads];
        }
        for (; i < n; i += threads) {
            sum ^= x[i];
        }
    }
    // Hardly ever written: what matters is that no compiler knows it.
    if sum.x == 0x9E3779B9u && sum.y == 0x7F4A7C15u {
        a = sum;
    }
}
