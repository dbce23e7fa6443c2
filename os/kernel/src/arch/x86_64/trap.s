/* Every way from ring 3 into the kernel and back. All of them leave the same frame (`Frame` in
   trap.rs) on the thread's kernel stack. The kernel runs with interrupts off, on one processor,
   so two variables are enough where others need swapgs. */

.section .text
.altmacro

.set vector, 0
.align 16
trap_stubs:
.rept 256
    .align 16
    /* Exceptions for which the processor pushes an error code itself. */
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
.endr

.macro save_registers
    .irp register, rcx, rax, rdx, rbx, rbp, rsi, rdi, r15, r14, r13, r12, r11, r10, r9, r8
    pushq %\register
    .endr
.endm

.macro restore_registers
    .irp register, r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx
    popq %\register
    .endr
.endm

trap_common:
    save_registers
    cld
    pushfq                      /* interrupts leave AC as it was: clear it, with or without SMAP */
    btrq $18, (%rsp)
    popfq
    xorl %ebp, %ebp
    movq %rsp, %rdi
    call trap_handler
    jmp leave_kernel

.global syscall_entry
syscall_entry:                  /* SFMASK has cleared IF, DF, TF, AC and NT */
    movq %rsp, user_rsp(%rip)
    movq kernel_rsp(%rip), %rsp
    pushq $0x1b                 /* user data */
    pushq user_rsp(%rip)
    pushq %r11
    pushq $0x23                 /* user code */
    pushq %rcx
    pushq %rax                  /* the call's number, in the place of the error code */
    pushq $256
    save_registers
    xorl %ebp, %ebp
    movq %rsp, %rdi
    call syscall_handler
    testl %eax, %eax
    jz leave_kernel
    /* The handler found the frame as the processor left it: the short way back is safe. */
    restore_registers
    movq 16(%rsp), %rcx         /* rip */
    movq 32(%rsp), %r11         /* rflags */
    movq 40(%rsp), %rsp
    sysretq

.global leave_kernel
leave_kernel:
    restore_registers
    addq $16, %rsp
    iretq

/* switch_stacks(save: *mut u64, load: u64) */
.global switch_stacks
switch_stacks:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret

/* user_copy(to, from, bytes) -> bytes not copied. The only code that touches user memory: between
   its labels a page fault that cannot be served continues at user_copy_failed. Eight bytes at a
   time are several times faster than single ones under software emulation. */
.global user_copy
user_copy:
    movq %rdx, %r8
    cmpb $0, smap_enabled(%rip)
    je 1f
    stac
1:  movq %rdx, %rcx
    shrq $3, %rcx
.global user_copy_start
user_copy_start:
    rep movsq
    movq %r8, %rcx
    andq $7, %rcx
    rep movsb
.global user_copy_end
user_copy_end:
    xorl %eax, %eax
2:  cmpb $0, smap_enabled(%rip)
    je 3f
    clac
3:  ret
.global user_copy_failed
user_copy_failed:
    movl $1, %eax
    jmp 2b

.section .rodata
.global trap_stubs_address
trap_stubs_address: .quad trap_stubs

.section .bss
    .align 8
.global kernel_rsp
kernel_rsp: .skip 8
user_rsp: .skip 8
.global smap_enabled
smap_enabled: .skip 8
