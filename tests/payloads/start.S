/* Where a payload begins: at the PVH entry point in 32-bit mode, or at the 64-bit entry of the Linux boot
 * protocol. Both end up in main() in 64-bit mode with 4 GiB mapped one to one. Whatever runs this may be a
 * KVM that emulates kernel-mode code and knows only the common instructions, so only those are used. */

#ifndef WITHOUT_PVH
    .pushsection .note.pvh, "a", @note
    .long 4, 4, 18              /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start_pvh
    .popsection
#endif

    .text
    .code32
    .globl start_pvh
start_pvh:
#ifdef FIRST_BYTE
    mov $0x3f8, %dx
    mov $FIRST_BYTE, %al
    out %al, %dx
#endif
    mov %ebx, %esi              /* the start info */
    mov $tables, %edi           /* one PML4, one PDPT, four directories */
    lea 0x1003(%edi), %eax
    mov %eax, (%edi)
    mov $4, %ecx
    lea 0x2003(%edi), %eax
    lea 0x1000(%edi), %edx
1:  mov %eax, (%edx)
    add $0x1000, %eax
    add $8, %edx
    dec %ecx
    jnz 1b
    mov $2048, %ecx
    mov $0x83, %eax             /* present, writable, 2 MiB */
    lea 0x2000(%edi), %edx
2:  mov %eax, (%edx)
    add $0x200000, %eax
    add $8, %edx
    dec %ecx
    jnz 2b
    mov %edi, %cr3
    mov %cr4, %eax
    or $0x20, %eax              /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax             /* EFER.LME */
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $in_long_mode

    .code64
    .globl _start
_start:                         /* rsi: the zero page */
#ifdef FIRST_BYTE
    mov $0x3f8, %dx
    mov $FIRST_BYTE, %al
    out %al, %dx
#endif
    xor %esi, %esi
in_long_mode:
    mov $stack_top, %esp
    mov %rsi, %rdi
    call main
3:  hlt
    jmp 3b

    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt

    .bss
    .balign 4096
tables:
    .skip 6 * 4096
    .skip 16384
stack_top:
