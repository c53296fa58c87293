use std::path::Path;
use wattle_engine::model::*;
fn sum(m: &Matrix) -> (f64, f64) {
    let mut i = 0.0;
    let (mut a, mut b) = (0.0, 0.0);
    for p in &m.parts {
        let d = p.data.as_ref();
        let v: Vec<f32> = match m.dtype {
            Dtype::F32 => d.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
            Dtype::F16 => {
                d.chunks(2).map(|c| half::f16::from_le_bytes(c.try_into().unwrap()).to_f32()).collect()
            }
            Dtype::Bf16 => {
                d.chunks(2).map(|c| half::bf16::from_le_bytes(c.try_into().unwrap()).to_f32()).collect()
            }
        };
        for x in v {
            i += 1.0;
            a += x as f64;
            b += x as f64 * (i % 97.0);
        }
    }
    (a, b)
}
fn vs(v: &Option<std::sync::Arc<Vector>>) -> String {
    match v {
        None => "null".into(),
        Some(v) => {
            let (mut a, mut b, mut i) = (0.0, 0.0, 0.0);
            for x in &v.values {
                i += 1.0;
                a += *x as f64;
                b += *x as f64 * (i % 97.0);
            }
            format!("[{a:?},{b:?}]")
        }
    }
}
fn lin(l: &Linear) -> String {
    let (a, b) = sum(&l.weight);
    format!("[{},{},{a:?},{b:?},{}]", l.weight.rows, l.weight.cols, vs(&l.bias))
}
fn nw(n: &Option<NormWeights>) -> String {
    match n {
        None => "null".into(),
        Some(n) => format!("[{},{}]", vs(&n.weight), vs(&n.bias)),
    }
}
fn main() {
    for dir in std::env::args().skip(1) {
        let m = match Model::load(Path::new(&dir)) {
            Ok(m) => m,
            Err(e) => {
                println!("ERR {dir} {e}");
                continue;
            }
        };
        let s = &m.spec;
        let w = &m.weights;
        let rope = match &s.positions {
            Positions::Rope(r) => format!(
                "{{\"dim\":{},\"inv\":{:?},\"long\":{},\"orig\":{},\"af\":{:?}}}",
                r.rotary_dim,
                r.inv_freq,
                r.long.as_ref().map_or("null".into(), |l| format!("{:?}", l.inv_freq)),
                r.long.as_ref().map_or(0, |l| l.original_context),
                r.attention_factor
            ),
            Positions::Learned { offset } => format!("{offset}"),
        };
        let layers: Vec<String> = w.layers.iter().map(|l| format!("{{\"an\":{},\"q\":{},\"k\":{},\"v\":{},\"o\":{},\"qn\":{},\"kn\":{},\"mn\":{},\"gate\":{},\"up\":{},\"down\":{}}}", nw(&Some(l.attn_norm.clone())), lin(&l.q), lin(&l.k), lin(&l.v), lin(&l.o), nw(&l.q_norm), nw(&l.k_norm), nw(&l.mlp_norm.clone().into()), l.gate.as_ref().map_or("null".into(), lin), lin(&l.up), lin(&l.down))).collect();
        let e = Linear { weight: w.embed.clone(), bias: None };
        let pos =
            w.positions.as_ref().map_or("null".into(), |p| lin(&Linear { weight: p.clone(), bias: None }));
        println!(
            "{{\"dir\":{dir:?},\"family\":\"{:?}\",\"vocab\":{},\"width\":{},\"context\":{},\"heads\":{},\"kv\":{},\"head_dim\":{},\"eps\":{:?},\"act\":\"{:?}\",\"scale\":{:?},\"window\":{},\"eos\":{:?},\"bos\":{},\"tied\":{},\"rope\":{rope},\"layers\":[{}],\"embed\":{},\"head\":{},\"pos\":{pos},\"final\":{},\"pin\":{},\"pout\":{}}}",
            s.family,
            s.vocab,
            s.width,
            s.context,
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.norm_eps,
            s.activation,
            s.attention_scale,
            format!(
                "[{}]",
                s.window
                    .iter()
                    .map(|w| w.map_or("null".into(), |x| x.to_string()))
                    .collect::<Vec<_>>()
                    .join(",")
            ),
            s.eos,
            s.bos.map_or("null".into(), |b| b.to_string()),
            std::sync::Arc::ptr_eq(&w.embed, &w.head.weight),
            layers.join(","),
            lin(&e),
            lin(&w.head),
            nw(&w.final_norm),
            w.project_in.as_ref().map_or("null".into(), lin),
            w.project_out.as_ref().map_or("null".into(), lin)
        );
    }
}
