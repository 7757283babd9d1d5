/* Dies at once, and again after every reset. */
#include "payload.h"

static const struct { u16 limit; u64 base; } __attribute__((packed)) no_interrupts = { 0, 0 };

void main(void)
{
    print("dying\n");
    asm volatile("lidt %0; ud2" : : "m"(no_interrupts));
}
