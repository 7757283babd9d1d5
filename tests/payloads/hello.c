/* The least a guest can do: say something and switch itself off. */
#include "payload.h"

void main(void)
{
    print("hello from a bare guest\n");
    /* Many bytes to one port with one instruction. */
    const char *text = "goodbye\n";
    u64 count = 8;
    asm volatile("rep outsb" : "+S"(text), "+c"(count) : "d"(COM1) : "memory");
    power_off();
}
