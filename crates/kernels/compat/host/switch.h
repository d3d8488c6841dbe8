// Changing from one fiber to another: the registers that a call preserves go on the old stack, come from
// the new one, and nothing else moves. No system call, unlike swapcontext.
#pragma once

#define MARLIN_STRING_(x) #x
#define MARLIN_STRING(x) MARLIN_STRING_(x)
#define MARLIN_SYMBOL(name) MARLIN_STRING(__USER_LABEL_PREFIX__) name

extern "C" {
// Saves the running fiber in `*from` and goes on where `to` was saved.
void marlin_fiber_switch(void **from, void *to);
}

#if defined(__x86_64__)

// System V Application Binary Interface, AMD64 Supplement, figure 3.4: rbx, rbp, r12–r15 are the callee's.
// Kernels do not change the modes of the floating-point units, so those stay.
__asm__(
    ".text\n"
    ".globl " MARLIN_SYMBOL("marlin_fiber_switch") "\n"
    MARLIN_SYMBOL("marlin_fiber_switch") ":\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n");

// A stack on which the switch above finds `entry` as where to return to. At a function's entry the stack
// is 8 bytes off a multiple of 16.
static inline void *marlin_fiber_prepare(unsigned char *end, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(end) - 2;
    sp[0] = reinterpret_cast<void *>(entry);
    sp[1] = nullptr;
    sp -= 6;
    for (int i = 0; i < 6; i++) {
        sp[i] = nullptr;
    }
    return sp;
}

#elif defined(__aarch64__)

// Procedure Call Standard for the Arm 64-bit Architecture, 6.1: x19–x29, the link register, and the lower
// halves of v8–v15 are the callee's.
__asm__(
    ".text\n"
    ".globl " MARLIN_SYMBOL("marlin_fiber_switch") "\n"
    ".p2align 2\n"
    MARLIN_SYMBOL("marlin_fiber_switch") ":\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp, #0]\n"
    "    stp x21, x22, [sp, #16]\n"
    "    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n"
    "    stp x27, x28, [sp, #64]\n"
    "    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n"
    "    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n"
    "    str x9, [x0]\n"
    "    mov sp, x1\n"
    "    ldp x19, x20, [sp, #0]\n"
    "    ldp x21, x22, [sp, #16]\n"
    "    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n"
    "    ldp x27, x28, [sp, #64]\n"
    "    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n"
    "    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n");

static inline void *marlin_fiber_prepare(unsigned char *end, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(end) - 20;
    for (int i = 0; i < 20; i++) {
        sp[i] = nullptr;
    }
    sp[11] = reinterpret_cast<void *>(entry); // x30
    return sp;
}

#else
#error "the emulated device switches fibers on x86-64 and AArch64; add the switch for this architecture"
#endif
