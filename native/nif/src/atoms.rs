//! Every atom that this library makes, named here once; none is made from input.

rustler::atoms! {
    arrow_ipc,
    changed,
    closed,
    dirty,
    nil,
    numpy,
    once,
    passive,
    snakepit_shm,
}
