defmodule Snakepit.SharedMemory.ErrorTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.Error

  doctest Error

  test "R8.4 the message says what, where and what to do" do
    error =
      Error.new(:not_found, "region not found: x", region: "x", operation: :read, remedy: "look")

    assert Exception.message(error) == ~s(region not found: x; in read of "x"; remedy: look)
    assert Exception.message(%{error | region: nil}) =~ "; in read; "
    assert Exception.message(Error.new(:io, "broken")) == "broken"
  end

  test "what the NIF answers becomes an error with all fields" do
    assert %Error{
             code: :empty,
             message: "nothing",
             region: "a",
             operation: :read,
             remedy: "wait"
           } = Error.from_native({:empty, "nothing", "a", "wait"}, :read)

    assert %Error{region: "b"} = Error.from_native({:empty, "nothing", "a", "wait"}, :read, "b")
    assert %Error{region: nil} = Error.from_native({:io, "nothing", nil, "wait"}, :read)
  end

  test "codes are listed once" do
    assert Error.codes() == Enum.uniq(Error.codes())
  end

  test "every error of the API carries all fields" do
    {:error, error} = Snakepit.SharedMemory.map_region("nobody-here")
    assert %Error{code: :not_found, region: "nobody-here", operation: :map_region} = error
    assert is_binary(error.message) and is_binary(error.remedy)
  end
end
