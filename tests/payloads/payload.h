/* What payloads share: ports, the serial console, memory-mapped access, PCI and a small virtio driver. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COM1 0x3f8
#define ECAM 0xe0000000ul

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }

static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

static inline void write8(u64 at, u8 value) { asm volatile("movb %0, (%1)" : : "q"(value), "r"(at) : "memory"); }
static inline void write16(u64 at, u16 value) { asm volatile("movw %0, (%1)" : : "r"(value), "r"(at) : "memory"); }
static inline void write32(u64 at, u32 value) { asm volatile("movl %0, (%1)" : : "r"(value), "r"(at) : "memory"); }
static inline void write64(u64 at, u64 value) { write32(at, value), write32(at + 4, value >> 32); }
static inline u8 read8(u64 at) { u8 value; asm volatile("movb (%1), %0" : "=q"(value) : "r"(at) : "memory"); return value; }
static inline u16 read16(u64 at) { u16 value; asm volatile("movw (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }
static inline u32 read32(u64 at) { u32 value; asm volatile("movl (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }

static inline void put(char c) { outb(COM1, c); }
static inline void print(const char *text) { while (*text) put(*text++); }
static inline void print_hex(u64 value, int digits)
{
    while (digits--) {
        u8 digit = value >> (4 * digits) & 15;
        put(digit < 10 ? '0' + digit : 'a' + digit - 10);
    }
}
/* Waits for a byte of console input. */
static inline u8 get(void)
{
    while (!(inb(COM1 + 5) & 1))
        ;
    return inb(COM1);
}

static inline void power_off(void) { for (;;) outb(0x600, 5 << 2 | 1 << 5); }
static inline void reset(void) { for (;;) outb(0x602, 1); }

static inline u64 config(int slot, int offset) { return ECAM + ((u64)slot << 15) + offset; }

#define VIRTIO_VENDOR 0x1af4
#define BLOCK_DEVICE 0x1042

/* The slot of the first device with this id, or 0. */
static inline int find_device(u16 device)
{
    for (int slot = 1; slot < 32; slot++)
        if (read32(config(slot, 0)) == ((u32)device << 16 | VIRTIO_VENDOR))
            return slot;
    return 0;
}

/* The address of a virtio structure (1 common, 2 notify, 3 ISR, 4 device), found by its capability. */
static inline u64 structure(int slot, int kind)
{
    /* An empty slot reads as all ones, for ever. */
    if (read32(config(slot, 0)) == 0xffffffff)
        return 0;
    for (int cap = read8(config(slot, 0x34)); cap; cap = read8(config(slot, cap + 1)))
        if (read8(config(slot, cap)) == 9 && read8(config(slot, cap + 3)) == kind)
            return (u64)read32(config(slot, 0x10 + 4 * read8(config(slot, cap + 4)))) + read32(config(slot, cap + 8));
    return 0;
}

enum { DEVICE_FEATURE_SELECT = 0, DEVICE_FEATURE = 4, DRIVER_FEATURE_SELECT = 8, DRIVER_FEATURE = 12,
       CONFIG_VECTOR = 16, QUEUES = 18, STATUS = 20, QUEUE_SELECT = 22, QUEUE_SIZE = 24, QUEUE_VECTOR = 26,
       QUEUE_ENABLE = 28, QUEUE_DESCRIPTORS = 32, QUEUE_DRIVER = 40, QUEUE_DEVICE = 48 };

/* A queue of 8 at fixed places of its page. */
#define AVAILABLE(queue) ((queue) + 0x400)
#define USED(queue) ((queue) + 0x800)

static inline void descriptor(u64 queue, int index, u64 address, u32 length, u16 flags, u16 next)
{
    u64 at = queue + 16 * index;
    write64(at, address), write32(at + 8, length), write16(at + 12, flags), write16(at + 14, next);
}

/* Resets the device, accepts these of its lower features, and sets up queue 0 in `queue`; returns 0 if the device
 * refuses. */
static inline int start_device_with(u64 common, u64 queue, u32 features)
{
    write8(common + STATUS, 0);
    write8(common + STATUS, 1);
    write8(common + STATUS, 3);
    write32(common + DRIVER_FEATURE_SELECT, 0);
    write32(common + DRIVER_FEATURE, features);
    write32(common + DRIVER_FEATURE_SELECT, 1);
    write32(common + DRIVER_FEATURE, 1); /* VERSION_1 */
    write8(common + STATUS, 11);
    if (!(read8(common + STATUS) & 8))
        return 0;
    write16(common + QUEUE_SELECT, 0);
    write16(common + QUEUE_SIZE, 8);
    write64(common + QUEUE_DESCRIPTORS, queue);
    write64(common + QUEUE_DRIVER, AVAILABLE(queue));
    write64(common + QUEUE_DEVICE, USED(queue));
    write16(common + QUEUE_ENABLE, 1);
    write8(common + STATUS, 15);
    return !(read8(common + STATUS) & 64);
}

static inline int start_device(u64 common, u64 queue) { return start_device_with(common, queue, 0); }
