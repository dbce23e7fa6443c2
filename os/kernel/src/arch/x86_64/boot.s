/* The way in, from PVH or Multiboot2: both arrive in 32-bit mode without paging, with the address
   of the boot information in ebx. Four GiB are mapped three times, at 0, at the linear map of
   physical memory and (the first two GiB) where the kernel is linked; mm builds the final tables. */

.section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18              /* the size of the name, of the value; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

.section .multiboot2, "a"
    .align 8
header:
    .long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + (header_end - header))
    .short 6, 0                 /* modules at page boundaries: the root image is mapped in place */
    .long 8
    .short 0, 0
    .long 8
header_end:

.section .boot.text, "ax"
.code32
pvh_start:
    movl $1, %esi
    jmp start
.global multiboot_start
multiboot_start:
    movl $2, %esi
start:
    cli
    cld
    movl $boot_stack_end, %esp
    movl $boot_directories, %edi
    movl $0x83, %eax            /* present, writable, 2 MiB */
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $(boot_directories + 3), %eax
    movl $boot_pointers, %edi
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 2b
    movl $(boot_directories + 3), boot_pointers_high + 510 * 8
    movl $(boot_directories + 4096 + 3), boot_pointers_high + 511 * 8
    movl $(boot_pointers + 3), boot_root
    movl $(boot_pointers + 3), boot_root + 256 * 8
    movl $(boot_pointers_high + 3), boot_root + 511 * 8
    movl %cr4, %eax
    orl $0x20, %eax             /* PAE */
    movl %eax, %cr4
    movl $boot_root, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER: long mode, no-execute */
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax       /* paging, write protection, protected mode */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $long_mode
.code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl %esi, %edi             /* which protocol */
    movl %ebx, %esi             /* its information */
    movabsq $kernel_boot_stack_end, %rsp
    xorl %ebp, %ebp
    movabsq $kernel_main, %rax
    call *%rax
3:  hlt
    jmp 3b

    .align 8
boot_gdt:
    .quad 0, 0x00209a0000000000
boot_gdt_pointer:
    .short 15
    .long boot_gdt

.section .boot.bss, "aw", @nobits
    .align 4096
boot_root: .skip 4096
boot_pointers: .skip 4096
boot_pointers_high: .skip 4096
boot_directories: .skip 4 * 4096
    .skip 256
boot_stack_end:

.section .bss
    .align 4096
    .skip 65536
kernel_boot_stack_end:
