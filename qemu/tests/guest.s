# The guest of tests/machine. Assemble:
#   as --32 -o guest.o guest.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.bin guest.o
.code16
.globl _start
_start:
  xorw %ax,%ax
  movw %ax,%ds
  movw %ax,%ss
  movw $0x7c00,%sp
  movb %dl,drive
  movw $ready,%si
  call print
next:
  movw $0x3fd,%dx
wait:
  inb %dx,%al
  testb $1,%al
  jz wait
  movw $0x3f8,%dx
  inb %dx,%al
  cmpb $'w',%al
  je write
  cmpb $'o',%al
  je off
  cmpb $'r',%al
  je reset
  outb %al,%dx
  jmp next
write:
  movb $0x43,%ah
  movb $0,%al
  movb drive,%dl
  movw $packet,%si
  int $0x13
  movw $wrote,%si
  call print
  incb packet+8
  jmp next
off:
  movw $0x604,%dx
  movw $0x2000,%ax
  outw %ax,%dx
reset:
  movb $0xfe,%al
  outb %al,$0x64
halt: hlt
  jmp halt
print:
  lodsb
  testb %al,%al
  jz done
  movw $0x3f8,%dx
  outb %al,%dx
  jmp print
done: ret
ready: .asciz "ready\r\n"
wrote: .asciz "wrote\r\n"
.balign 4
packet: .byte 16,0
 .word 1
 .word 0x7c00, 0
 .quad 8
drive: .byte 0
